// Tables that sort by a click on their headings and show only the rows that hold the text of their filter.

for (const table of document.querySelectorAll("table[id]")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button")?.addEventListener("click", () => {
      const now = heading.getAttribute("aria-sort");
      // figures start with the largest, the first column in its own order
      const descending = now ? now === "ascending" : column > 0;
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const value = (row) => Number(row.cells[column].dataset.v);
      const sign = descending ? -1 : 1;
      body.append(...[...body.rows].sort((a, b) => sign * (value(a) - value(b))));
    });
  });
  const filter = document.querySelector(`[data-filter="${table.id}"]`);
  filter?.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of body.rows) {
      const members = row.dataset.group === undefined ? [] : data.groups[row.dataset.group].members;
      const text = [row.textContent, ...members.map(([, tensor]) => tensor)].join(" ").toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}
