"""How long networks and their layers take, by turns, in ONNX Runtime and in PyTorch, and how much memory."""
