// What every page has: its data, elements from plain text, and the choice of a colour scheme.

const data = JSON.parse(document.getElementById("data").textContent);
for (const node of data.nodes ?? []) node.tensors = node.tensors.map((number) => data.tensors[number]);
for (const group of data.groups ?? []) {
  group.members = group.members.map(([role, number, ...rest]) => [data.roles[role], data.tensors[number][0], ...rest]);
}
const byId = (id) => document.getElementById(id);

/** An element with properties and children; texts become text, never markup. */
function make(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties ?? {})) {
    if (key.includes("-")) element.style.setProperty(key, value);
    else element[key] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}

{
  const schemes = { auto: "as the system", light: "light", dark: "dark" };
  const button = byId("theme");
  let chosen = "auto";
  try {
    chosen = localStorage.getItem("pdc-fx-theme") ?? "auto";
  } catch {
    // storage is switched off: the choice lasts as long as the page
  }
  function show(scheme) {
    chosen = scheme in schemes ? scheme : "auto";
    document.documentElement.dataset.theme = chosen;
    button.querySelector("span").textContent = chosen[0].toUpperCase() + chosen.slice(1);
    button.setAttribute("aria-label", `Colour scheme: ${schemes[chosen]}. Change it`);
  }
  button.addEventListener("click", () => {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const order = dark ? ["auto", "light", "dark"] : ["auto", "dark", "light"];
    show(order[(order.indexOf(chosen) + 1) % 3]);
    try {
      localStorage.setItem("pdc-fx-theme", chosen);
    } catch {
      // as above
    }
  });
  show(chosen);
}
