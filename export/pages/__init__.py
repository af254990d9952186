"""What pages are made of: the graph of a model and where its boxes lie, charts, tables, templates."""
