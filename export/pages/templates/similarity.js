// The similarity of the filters of one group as a heat map: chosen, pointed at, and walked through with the arrow keys.

if (byId("heat")) {
  const heat = byId("heat");
  const cell = byId("cell");
  const POSITIVE = [47, 116, 224]; // they stand on the page's own ground, so that their strength is all that is drawn
  const NEGATIVE = [222, 118, 20];
  let shown = null;
  let at = [0, 0];

  /** The full matrix from the upper triangle. */
  function decoded({ order, sizes, cosines, means }) {
    const bytes = Int8Array.from(atob(cosines), (character) => character.charCodeAt(0));
    const count = order.length;
    const matrix = new Float32Array(count * count);
    let next = 0;
    for (let row = 0; row < count; row++) {
      for (let column = row; column < count; column++) {
        matrix[row * count + column] = matrix[column * count + row] = bytes[next++] / 127;
      }
    }
    const starts = sizes.map((_, index) => sizes.slice(0, index).reduce((sum, size) => sum + size, 0));
    const label = sizes.flatMap((size, index) => Array(size).fill(index));
    return { order, sizes, starts, label, means, matrix, count };
  }

  function paint() {
    const { count, matrix, sizes, starts } = shown;
    const small = new ImageData(count, count);
    matrix.forEach((value, index) => small.data.set([...(value < 0 ? NEGATIVE : POSITIVE), 255 * Math.abs(value)], 4 * index));
    const source = document.createElement("canvas");
    source.width = source.height = count;
    source.getContext("2d").putImageData(small, 0, 0);
    const side = count * Math.max(1, Math.ceil(960 / count));
    heat.width = heat.height = side;
    const pen = heat.getContext("2d");
    pen.imageSmoothingEnabled = false;
    pen.drawImage(source, 0, 0, side, side);
    pen.strokeStyle = "#808894";
    pen.lineWidth = Math.max(2, side / 400);
    sizes.forEach((size, index) => {
      const scale = side / count;
      if (size > 1) pen.strokeRect(starts[index] * scale, starts[index] * scale, size * scale, size * scale);
    });
  }

  /** Put the marker on a square of the matrix. */
  function point(row, column, rows, columns, words) {
    const part = (value) => `${(100 * value) / shown.count}%`;
    Object.assign(cell.style, { left: part(column), top: part(row), width: part(columns), height: part(rows) });
    cell.hidden = false;
    byId("pair").textContent = words;
  }

  const shortly = (value) => (value === null ? "–" : value.toFixed(2).replace("-", "−"));

  function pointAt(row, column) {
    const { order, label, matrix, count } = shown;
    at = [row, column];
    const together = label[row] === label[column] ? "merged into one" : "in different clusters";
    const words =
      row === column
        ? `channel ${order[row]}, in a cluster of ${shown.sizes[label[row]]}`
        : `channels ${order[row]} and ${order[column]}: ${shortly(matrix[row * count + column])}, ${together}`;
    point(row, column, 1, 1, words);
  }

  function meanOf(index) {
    const { matrix, count, starts, sizes } = shown;
    let sum = 0;
    for (let row = starts[index]; row < starts[index] + sizes[index]; row++) {
      for (let column = starts[index]; column < row; column++) sum += matrix[row * count + column];
    }
    return (2 * sum) / (sizes[index] * (sizes[index] - 1));
  }

  function clusterButton(index) {
    const { order, starts, sizes } = shown;
    const channels = order.slice(starts[index], starts[index] + sizes[index]);
    const button = make("button", { type: "button", className: "link" }, channels.join(", "));
    const mean = shortly(meanOf(index));
    button.addEventListener("click", () =>
      point(starts[index], starts[index], sizes[index], sizes[index], `${sizes[index]} channels merged into one: on average ${mean}`),
    );
    return make("span", {}, button, make("small", {}, ` ${mean}`));
  }

  function show(index) {
    shown = decoded(data.similarity[index]);
    paint();
    cell.hidden = true;
    at = [0, 0];
    const [inside, across] = shown.means;
    const words = `Mean similarity ${shortly(inside)} inside clusters, ${shortly(across)} across.`;
    byId("means").textContent = words;
    heat.setAttribute("aria-label", `Similarity of ${shown.count} filters of ${data.groups[data.similarity[index].group].name}. ${words} Arrow keys go from pair to pair.`);
    byId("pair").textContent = "";
    const merged = shown.sizes.flatMap((size, number) => (size > 1 ? [number] : []));
    byId("clusters").replaceChildren(...listed("Channels merged into one", merged.map(clusterButton)));
  }

  heat.addEventListener("pointermove", (event) => {
    const area = heat.getBoundingClientRect();
    const place = (value, size) => Math.max(0, Math.min(shown.count - 1, Math.floor((value / size) * shown.count)));
    pointAt(place(event.clientY - area.top, area.height), place(event.clientX - area.left, area.width));
  });
  heat.addEventListener("keydown", (event) => {
    if (!(event.key in STEPS) || event.ctrlKey || event.metaKey || event.altKey) return;
    const [dx, dy] = STEPS[event.key];
    const into = (value) => Math.max(0, Math.min(shown.count - 1, value));
    pointAt(into(at[0] + dy), into(at[1] + dx));
    event.preventDefault();
  });
  byId("which").addEventListener("change", () => show(byId("which").selectedIndex));
  show(0);
}
