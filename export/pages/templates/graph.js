// The network graph: pan, zoom, search, selection, keyboard. What it looks like is said in graph.css by classes.

const svg = byId("graph");
const view = byId("view");
const boxes = [...view.querySelectorAll(".n")];
const edges = [...view.querySelectorAll(".e")].map((path) => [path, Number(path.dataset.a), Number(path.dataset.b)]);
const [fullWidth, fullHeight, boxWidth, boxHeight] = data.size;
const { nodes, groups, reasons } = data;

// ------------------------------------------------------------------------------------------------------- pan and zoom

const FAR = 0.45; // below this zoom texts cannot be read
const MANY = 500; // operators from which on texts are left out while the wheel turns: they are most of the work of a step
const REST = 200; // milliseconds without a step, after which they are back
const camera = { x: 0, y: 0, zoom: 1 };
let planned = false;
let turning = 0;

function draw() {
  planned = false;
  view.setAttribute("transform", `translate(${camera.x} ${camera.y}) scale(${camera.zoom})`);
  svg.classList.toggle("far", camera.zoom < FAR || turning > 0);
}

function move(x, y, zoom) {
  Object.assign(camera, { x, y, zoom });
  if (!planned) requestAnimationFrame(draw);
  planned = true;
}

/** Zoom by a factor, with the point (x, y) of the stage kept where it is. */
function zoomAt(x, y, factor) {
  const zoom = Math.min(4, Math.max(0.02, camera.zoom * factor));
  const change = zoom / camera.zoom;
  move(x - (x - camera.x) * change, y - (y - camera.y) * change, zoom);
}

/** The same by wheel or fingers, where one step follows the other. */
function turn(x, y, factor) {
  clearTimeout(turning);
  if (nodes.length >= MANY) {
    turning = setTimeout(() => {
      turning = 0;
      draw();
    }, REST);
  }
  zoomAt(x, y, factor);
}

/** Show a rectangle of the graph as large as fits, within limits of zoom. */
function frame(left, top, right, bottom, largest = 1.15, smallest = 0.02) {
  const { width, height } = svg.getBoundingClientRect();
  const fitting = Math.min((width - 24) / (right - left), (height - 24) / (bottom - top));
  const zoom = Math.max(smallest, Math.min(largest, fitting));
  move(width / 2 - (zoom * (left + right)) / 2, height / 2 - (zoom * (top + bottom)) / 2, zoom);
}

function fit() {
  frame(0, 0, fullWidth, fullHeight);
  move(camera.x, Math.min(camera.y, 6), camera.zoom); // what is less high than the stage begins at its top
}

function frameNodes(numbers, largest = 1.15, smallest = 0.02) {
  const xs = numbers.map((n) => nodes[n].at[0]);
  const ys = numbers.map((n) => nodes[n].at[1]);
  const room = 40;
  const [left, top] = [Math.min(...xs) - room, Math.min(...ys) - room];
  frame(left, top, Math.max(...xs) + boxWidth + room, Math.max(...ys) + boxHeight + room, largest, smallest);
}

/** Pan as little as needed to have a node in sight. */
function reveal(number) {
  const { width, height } = svg.getBoundingClientRect();
  const [x, y] = nodes[number].at;
  const into = (low, high, size) => Math.max(12 - low, 0) || Math.min(size - 12 - high, 0);
  const left = camera.x + x * camera.zoom;
  const top = camera.y + y * camera.zoom;
  const dx = into(left, left + boxWidth * camera.zoom, width);
  const dy = into(top, top + boxHeight * camera.zoom, height);
  if (dx || dy) move(camera.x + dx, camera.y + dy, camera.zoom);
}

const centre = () => [svg.clientWidth / 2, svg.clientHeight / 2];
byId("in").addEventListener("click", () => zoomAt(...centre(), 1.3));
byId("out").addEventListener("click", () => zoomAt(...centre(), 1 / 1.3));
byId("fit").addEventListener("click", fit);

svg.addEventListener(
  "wheel",
  (event) => {
    // the wheel scrolls the page, as everywhere, unless the graph is being worked in
    if (!event.ctrlKey && !event.metaKey && !svg.contains(document.activeElement)) return;
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 18 : 1;
    const area = svg.getBoundingClientRect();
    turn(event.clientX - area.left, event.clientY - area.top, Math.exp(-Math.max(-200, Math.min(200, event.deltaY * lines)) / 300));
  },
  { passive: false },
);

const pointers = new Map();
let dragged = 0;
svg.addEventListener("pointerdown", (event) => {
  pointers.set(event.pointerId, event);
  if (pointers.size === 1) dragged = 0;
});
svg.addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  pointers.set(event.pointerId, event);
  dragged += Math.abs(event.clientX - before.clientX) + Math.abs(event.clientY - before.clientY);
  if (dragged < 4) return;
  // captured only now: a captured pointer would take the click away from the node
  if (!svg.hasPointerCapture(event.pointerId)) svg.setPointerCapture(event.pointerId);
  if (pointers.size === 1) {
    move(camera.x + event.clientX - before.clientX, camera.y + event.clientY - before.clientY, camera.zoom);
  } else if (pointers.size === 2) {
    const other = [...pointers.entries()].find(([id]) => id !== event.pointerId)[1];
    const area = svg.getBoundingClientRect();
    const gap = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
    turn(other.clientX - area.left, other.clientY - area.top, gap(event) / Math.max(gap(before), 1));
  }
});
for (const kind of ["pointerup", "pointercancel", "pointerleave"]) {
  svg.addEventListener(kind, (event) => pointers.delete(event.pointerId));
}

// ---------------------------------------------------------------------------------------------------------- selection

const readers = new Map(); // tensor -> the nodes that read it
nodes.forEach((node, number) => {
  for (const [tensor] of node.tensors) readers.set(tensor, [...(readers.get(tensor) ?? []), number]);
});

const ROLES = {
  producer: ["makes", "Made by"],
  channelwise: ["carries", "Per channel"],
  consumer: ["reads", "Read by"],
};

/** Node -> what it does with the channels of a group: makes, carries or reads. */
function membersOf(group) {
  const found = new Map();
  nodes.forEach((node, number) => {
    if (node.groups.some(([g]) => g === group)) found.set(number, "carries");
  });
  for (const [role, tensor] of groups[group].members) {
    const what = ROLES[role][0];
    for (const number of readers.get(tensor) ?? []) {
      if (what === "makes" || !found.has(number)) found.set(number, what);
    }
  }
  return found;
}

function mark(found, chosen = null) {
  svg.classList.add("picked");
  boxes.forEach((box, number) => {
    const what = found.get(number);
    box.classList.toggle("on", what !== undefined);
    for (const kind of ["makes", "reads"]) box.classList.toggle(kind, what === kind);
    box.classList.toggle("chosen", number === chosen);
    box.setAttribute("aria-pressed", String(number === chosen));
  });
  for (const [path, a, b] of edges) {
    path.classList.toggle("on", found.has(a) && found.get(a) !== "reads" && found.has(b));
  }
  byId("clear").hidden = false;
}

function present(parts, said) {
  byId("details").replaceChildren(...parts);
  byId("details").hidden = false;
  byId("about").hidden = true;
  byId("panel").scrollTop = 0;
  byId("said").textContent = said;
}

function highlightRow(group) {
  for (const row of document.querySelectorAll("tr[data-group]")) row.classList.toggle("on", Number(row.dataset.group) === group);
}

function clear() {
  svg.classList.remove("picked");
  for (const box of boxes) {
    box.classList.remove("on", "makes", "reads", "chosen");
    box.removeAttribute("aria-pressed");
  }
  for (const [path] of edges) path.classList.remove("on");
  highlightRow(null);
  byId("details").hidden = true;
  byId("about").hidden = false;
  byId("clear").hidden = true;
  byId("said").textContent = "Selection cleared";
}

function selectGroup(group) {
  const found = membersOf(group);
  mark(found);
  highlightRow(group);
  frameNodes([...found.keys()], 1.15);
  present(groupDetails(group), `Group ${groups[group].name}, ${found.size} operators`);
}

function selectNode(number, show = false) {
  const node = nodes[number];
  const main = node.groups.reduce((best, entry) => (best === null || entry[1] > best[1] ? entry : best), null);
  const found = main ? membersOf(main[0]) : node.frozen.length ? frozenFor(node.frozen.map(([reason]) => reason)) : new Map();
  found.set(number, found.get(number) ?? "carries");
  mark(found, number);
  highlightRow(main ? main[0] : null);
  focusable(number);
  if (show) frameNodes([number], Math.max(camera.zoom, 0.9), 0.9);
  const rest = main ? [make("hr"), ...groupDetails(main[0])] : [];
  present([...nodeDetails(number), ...rest], boxes[number].getAttribute("aria-label"));
}

function frozenFor(wanted) {
  const found = new Map();
  nodes.forEach((node, number) => {
    if (node.frozen.some(([reason]) => wanted.includes(reason))) found.set(number, "carries");
  });
  return found;
}

function selectReasons(wanted) {
  const found = frozenFor(wanted);
  mark(found);
  highlightRow(null);
  if (found.size) frameNodes([...found.keys()]);
  const texts = wanted.map((reason) => make("li", {}, reasons[reason]));
  present([make("h3", {}, "Frozen"), make("ul", {}, ...texts), ...listed("Holds such channels", [...found.keys()].map(nodeLink))], `${found.size} operators`);
}

// ------------------------------------------------------------------------------------------------------------ details

const SHOWN = 40;

function listed(title, items) {
  if (!items.length) return [];
  const list = make("ul", {}, ...items.slice(0, SHOWN).map((item) => make("li", {}, item)));
  if (items.length > SHOWN) {
    const more = make("button", { type: "button", className: "link soft" }, `${items.length - SHOWN} more`);
    more.addEventListener("click", () => {
      more.parentElement.remove();
      list.append(...items.slice(SHOWN).map((item) => make("li", {}, item)));
    });
    list.append(make("li", {}, more));
  }
  return [make("h4", {}, title), list];
}

function terms(pairs) {
  const shown = pairs.filter(([, value]) => value !== "" && value !== null);
  return make("dl", {}, ...shown.flatMap(([term, value]) => [make("dt", {}, term), make("dd", {}, value)]));
}

function nodeLink(number) {
  const node = nodes[number];
  const button = make("button", { type: "button", className: "link" }, node.name);
  button.addEventListener("click", () => selectNode(number, true));
  const place = [node.module, node.source].filter(Boolean).join(" · ");
  return make("span", {}, button, place ? make("small", {}, ` ${place}`) : "");
}

function groupLink(group, channels) {
  const { name, hue, stream } = groups[group];
  const button = make("button", { type: "button", className: "link" }, swatch(hue, stream), name || "(the model itself)");
  button.addEventListener("click", () => selectGroup(group));
  return make("span", {}, button, make("small", {}, ` ${channels} channels`));
}

const swatch = (hue, stream) => make("i", { className: stream ? "swatch stream" : "swatch", "--h": hue });

function nodeDetails(number) {
  const node = nodes[number];
  return [
    make("h3", {}, node.module || node.name),
    make("p", { className: "soft" }, node.function || `the model's ${node.name}`),
    terms([["Result", node.shape], ["MACs", node.macs], ["Called at", node.source]]),
    ...listed("Tensors", node.tensors.map(([name, shape]) => make("span", {}, name, make("small", {}, ` ${shape}`)))),
    ...listed("Holds channels of", node.groups.length > 1 ? node.groups.map(([g, count]) => groupLink(g, count)) : []),
    ...listed("Frozen", node.frozen.map(([reason, count]) => make("span", {}, reasons[reason], make("small", {}, ` ${count} channels`)))),
  ];
}

function groupDetails(group) {
  const { name, channels, kept, hue, stream, macs, params, share, constraints, joins, members } = groups[group];
  const parts = [
    make("h3", {}, swatch(hue, stream), name || "(the model itself)"),
    make("p", { className: "soft" }, stream ? "residual stream" : "channel group"),
    terms([["Channels", kept === undefined ? String(channels) : `${channels} → ${kept}`], ["At stake", `${macs} MACs (${share}), ${params} parameters`]]),
    ...listed("Constraints", constraints),
    ...listed("Coupled here", joins.map(nodeLink)),
  ];
  for (const [role, [, title]] of Object.entries(ROLES)) {
    const items = members
      .filter(([kind]) => kind === role)
      .map(([, tensor, dim, entries, size]) => {
        const button = make("button", { type: "button", className: "link" }, tensor);
        const at = readers.get(tensor)?.[0];
        if (at !== undefined) button.addEventListener("click", () => selectNode(at, true));
        return make("span", {}, button, make("small", {}, ` axis ${dim}${entries < size ? `, ${entries} of ${size}` : ""}`));
      });
    parts.push(...listed(`${title} (${items.length})`, items));
  }
  return parts;
}

// ----------------------------------------------------------------------------------------------- search, click, keyboard

const texts = nodes.map((node) => [node.name, node.function, node.module, ...node.tensors.map(([t]) => t)].join(" ").toLowerCase());
let hits = [];
let current = -1;

byId("find").addEventListener("input", () => {
  const words = byId("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  hits = words.length ? texts.flatMap((text, number) => (words.every((word) => text.includes(word)) ? [number] : [])) : [];
  current = -1;
  boxes.forEach((box) => box.classList.remove("hit"));
  for (const number of hits) boxes[number].classList.add("hit");
  byId("next").disabled = !hits.length;
  byId("found").textContent = words.length ? `${hits.length} found` : "";
  if (hits.length) frameNodes(hits, 1.15);
});

function nextHit(step) {
  if (!hits.length) return;
  current = (current + step + hits.length) % hits.length;
  byId("found").textContent = `${current + 1} of ${hits.length}`;
  selectNode(hits[current], true);
}

byId("next").addEventListener("click", () => nextHit(1));
byId("find").addEventListener("keydown", (event) => {
  if (event.key === "Enter") nextHit(event.shiftKey ? -1 : 1);
});

let inOrder = 0; // the one node that the tab key reaches

function focusable(number) {
  boxes[inOrder]?.setAttribute("tabindex", "-1");
  inOrder = number;
  boxes[number]?.setAttribute("tabindex", "0");
}

/** The nearest node in a direction: what lies ahead counts once, what lies aside twice. */
function neighbour(number, dx, dy) {
  const [x, y] = nodes[number].at;
  let best = [Infinity, number];
  nodes.forEach((node, other) => {
    const ahead = (node.at[0] - x) * dx + (node.at[1] - y) * dy;
    const aside = Math.abs((node.at[0] - x) * dy) + Math.abs((node.at[1] - y) * dx);
    if (ahead > 0 && ahead + 2 * aside < best[0]) best = [ahead + 2 * aside, other];
  });
  return best[1];
}

const STEPS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };

svg.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const number = boxes.indexOf(event.target);
  if (event.key in STEPS && number >= 0) {
    const next = neighbour(number, ...STEPS[event.key]);
    focusable(next);
    boxes[next].focus({ preventScroll: true });
    reveal(next);
  } else if ((event.key === "Enter" || event.key === " ") && number >= 0) selectNode(number);
  else if (event.key === "Escape" && svg.classList.contains("picked")) clear();
  else if (event.key === "Escape") document.activeElement.blur(); // the wheel scrolls the page again
  else if (event.key === "+" || event.key === "=") zoomAt(...centre(), 1.3);
  else if (event.key === "-") zoomAt(...centre(), 1 / 1.3);
  else if (event.key === "0") fit();
  else return;
  event.preventDefault();
});

svg.addEventListener("click", (event) => {
  if (dragged >= 4) return;
  const number = boxes.indexOf(event.target.closest(".n"));
  if (number < 0) clear();
  else {
    selectNode(number);
    boxes[number].focus({ preventScroll: true });
  }
});

byId("clear").addEventListener("click", clear);

// what a pointer resting on a node shows, written when it first gets there
svg.addEventListener("pointerover", (event) => {
  const box = event.target.closest(".n");
  const number = boxes.indexOf(box);
  if (number < 0 || box.querySelector("title")) return;
  const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
  title.textContent = [box.getAttribute("aria-label"), ...nodes[number].frozen.map(([reason]) => `frozen: ${reasons[reason]}`)].join("\n");
  box.prepend(title);
});

document.addEventListener("click", (event) => {
  const { select, node, reasons: why } = event.target.closest("[data-select], [data-node], [data-reasons]")?.dataset ?? {};
  if (select !== undefined) selectGroup(Number(select));
  else if (node !== undefined) selectNode(Number(node), true);
  else if (why !== undefined) selectReasons(why.split(" ").filter(Boolean).map(Number));
  else return;
  svg.scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
});

/** At first the whole network, or on a narrow screen its first columns, large enough to read. */
function begin() {
  fit();
  const { width } = svg.getBoundingClientRect();
  if (width < 600 && camera.zoom < 0.8) move(6, 6, 0.8);
}

focusable(0);
begin();
draw();
