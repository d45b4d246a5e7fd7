// The page: colour, filters, the chosen film with its neighbours, lists of films, the table that follows.
"use strict";
const map = readMap(window.filmMap);
const by = (id) => document.getElementById(id);
const columnOf = Object.fromEntries(map.columns.map((column) => [column.name, column]));
const ROW_PIXELS = 25.6, MOST_ROWS = 40;
const state = { chosen: -1, selected: null, passing: null, filters: new Map(), listed: [] };
const every = Uint32Array.from({ length: map.films }, (_, film) => film);
let plot = createPlot(by("canvas"), map.films, (points) => choose(points, true), () => choose([], true));
let drawn = Promise.resolve();
by("without").hidden = Boolean(plot);

function build(tag, attributes = {}, ...children) {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
}

// ---------------------------------------------------------------- colours

function colour() {
  const { codes, colours, legend } = chooseColours(columnOf[by("colour").value], map.films);
  by("legend").replaceChildren(...legend.map(([mark, name]) => {
    const sample = build("i", { className: mark == "ramp" ? "ramp" : "" });
    sample.style.background = mark == "ramp" ? `linear-gradient(to right, ${RAMP.join(",")})` : mark;
    return build("li", {}, sample, name);
  }));
  if (!plot) return;
  drawn = drawn.then(() => {
    plot.set({ colorBy: "valueA", pointColor: colours });
    return plot.draw({ x: map.x, y: map.y, valueA: codes }, { zDataType: "categorical" });
  }).then(() => show());
}

// ---------------------------------------------------------------- filters

function passes(film) {
  for (const [column, test] of state.filters) if (!test(film, column)) return false;
  return true;
}

function filter() {
  state.passing = state.filters.size ? every.filter(passes) : null;
  if (state.selected) state.selected = state.selected.filter(passes);
  if (state.selected && !state.selected.length) state.selected = null;
  if (state.chosen >= 0 && !passes(state.chosen)) state.chosen = -1;
  show();
}

function addFilter(name) {
  const column = columnOf[name], box = build("fieldset", { className: "filter" });
  const away = build("button", { type: "button", ariaLabel: `Remove the filter ${name}` }, "×");
  box.append(build("legend", {}, name, " ", away));
  if (column.values) addChoices(box, column); else addRange(box, column);
  away.onclick = () => { state.filters.delete(column); box.remove(); by("add").querySelector(`option[value="${CSS.escape(name)}"]`).disabled = false; filter(); };
  by("filters").append(box);
  by("add").selectedOptions[0].disabled = true;
}

function addChoices(box, column) {
  const wanted = new Set(column.values.keys()).add(UNKNOWN_CODE);
  const list = build("div", { className: "values" });
  for (const code of wanted) {
    const tick = build("input", { type: "checkbox", checked: true });
    tick.onchange = () => {
      if (tick.checked) wanted.add(code); else wanted.delete(code);
      state.filters.set(column, (film) => wanted.has(column.codes[film]));
      filter();
    };
    list.append(build("label", {}, tick, " ", code == UNKNOWN_CODE ? "unknown" : column.values[code]));
  }
  box.append(list);
}

function addRange(box, column) {
  const ends = ["from", "to"].map((word) => {
    const end = build("input", { type: "number", step: "any", ariaLabel: `${column.name} ${word}` });
    box.append(build("label", {}, `${word} `, end, " "));
    return end;
  });
  const change = () => {
    const [low, high] = ends.map((end, place) => end.value === "" ? [-Infinity, Infinity][place] : +end.value);
    state.filters.set(column, (film) => column.numbers[film] >= low && column.numbers[film] <= high);
    filter();
  };
  for (const end of ends) end.onchange = change;
}

// ---------------------------------------------------------------- films

function choose(films, fromPlot = false) {
  const kept = [...films].filter(passes);
  state.chosen = kept.length == 1 ? kept[0] : -1;
  state.selected = kept.length > 1 ? Uint32Array.from(kept).sort() : null;
  show(fromPlot);
}

function show(fromPlot = false) {
  state.listed = state.selected ?? state.passing ?? every;
  const passing = state.passing?.length ?? map.films;
  by("status").textContent = `${map.films} films` + (state.passing ? `, ${passing} pass the filters` : "")
    + (state.selected ? `, ${state.selected.length} selected` : "");
  for (const id of ["copy", "save"]) by(id).textContent =
    `${id == "copy" ? "Copy" : "Save"} ${state.listed.length} ${state.listed.length == 1 ? "uid" : "uids"}`;
  showFilm();
  showRows(fromPlot || state.chosen >= 0);
  if (!plot) return;
  drawn = drawn.then(async () => {
    if (state.passing) await plot.filter([...state.passing], { preventEvent: true });
    else await plot.unfilter({ preventEvent: true });
    if (fromPlot) return;
    const films = state.selected ? [...state.selected] : state.chosen >= 0 ? [state.chosen] : [];
    if (films.length) await plot.select(films, { preventEvent: true }); else await plot.deselect({ preventEvent: true });
  });
}

function drawThumbnail(film, side) {
  const { side: own, sheet } = map.thumbnails, place = film % (sheet * sheet), scale = side / own;
  const picture = build("span", { className: "thumbnail", role: "img", ariaLabel: `Film ${film}` });
  const tall = Math.ceil(Math.min(sheet * sheet, map.films - film + place) / sheet);
  Object.assign(picture.style, {
    width: `${side}px`, height: `${side}px`,
    backgroundImage: `url(thumbnails/${String(Math.floor(film / (sheet * sheet))).padStart(4, "0")}.jpg)`,
    backgroundSize: `${sheet * own * scale}px ${tall * own * scale}px`,
    backgroundPosition: `${-(place % sheet) * side}px ${-Math.floor(place / sheet) * side}px`,
  });
  return picture;
}

function showFilm() {
  const film = state.chosen, box = by("film");
  if (film < 0) return box.replaceChildren();
  const known = map.columns.map((column) => [column.name, tell(column, film)])
    .filter(([name, value]) => value !== "" && !name.startsWith("score:") && !(name.startsWith("flag:") && value == "no"));
  const facts = build("p", { className: "facts" });
  for (const [name, value] of known) facts.append(`${name} ${value}`, build("br"));
  const near = build("ol", { className: "near", ariaLabel: "Nearest films" });
  for (let place = film * map.shown; place < (film + 1) * map.shown; place++) {
    const other = map.near[place];
    const button = build("button", { type: "button" }, ...(map.thumbnails ? [drawThumbnail(other, 64)] : []), map.cosine[place].toFixed(3));
    if (map.patient[other] == map.patient[film]) button.append(" ", build("b", {}, "same patient"));
    if (!map.thumbnails) button.append(` ${map.uid[other].slice(0, 8)}`);
    button.onclick = () => choose([other]);
    near.append(build("li", {}, button));
  }
  const one = build("div", { className: "one" }, ...(map.thumbnails ? [drawThumbnail(film, 144)] : []), near);
  box.replaceChildren(build("h2", {}, build("code", {}, map.uid[film])), one, facts);
}

// ---------------------------------------------------------------- table

function showRows(follow = false) {
  const place = state.chosen < 0 ? -1 : state.listed.indexOf(state.chosen);
  if (follow) by("table").scrollTop = place < 0 ? 0 : Math.max(0, place * ROW_PIXELS - by("table").clientHeight / 3);
  const first = Math.max(0, Math.floor(by("table").scrollTop / ROW_PIXELS) - 5);
  const some = state.listed.slice(first, first + MOST_ROWS);
  const space = (rows) => { const row = build("tr"); row.style.height = `${rows * ROW_PIXELS}px`; return row; };
  const rows = Array.from(some, (film) => {
    const row = build("tr", { className: film == state.chosen ? "chosen" : "" },
      build("td", {}, map.uid[film].slice(0, 12)), ...map.columns.map((column) => build("td", {}, tell(column, film))));
    row.dataset.film = film;
    row.onclick = () => choose([film]);
    return row;
  });
  by("rows").replaceChildren(space(first), ...rows, space(Math.max(0, state.listed.length - first - some.length)));
}

function step(by_) {
  const place = state.listed.indexOf(state.chosen);
  const next = state.listed[Math.min(state.listed.length - 1, Math.max(0, place + by_))];
  if (next === undefined) return;
  const { selected } = state;
  choose([next]);
  state.selected = selected;
  show();
}

// ---------------------------------------------------------------- lists, keys

const listUids = () => Array.from(state.listed, (film) => map.uid[film]);

function save() {
  const blob = new Blob([["uid", ...listUids(), ""].join("\n")], { type: "text/csv" });
  const link = build("a", { href: URL.createObjectURL(blob), download: "films.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function copy() {
  const area = build("textarea", { value: listUids().join("\n") });  // the clipboard of a file:// page may be closed
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  by("copy").focus();
  by("status").textContent = done ? `${state.listed.length} uids copied` : "This browser does not let the page copy; save them instead";
}

function move(dx, dy) {
  const films = state.passing ?? every;
  if (state.chosen < 0) return choose([films[0]]);
  let best = -1, least = Infinity;
  for (const film of films) {
    const x = map.x[film] - map.x[state.chosen], y = map.y[film] - map.y[state.chosen];
    const along = x * dx + y * dy, aside = Math.abs(x * dy) + Math.abs(y * dx);
    if (along > 0 && along + 2 * aside < least) { least = along + 2 * aside; best = film; }
  }
  if (best >= 0) choose([best]);
}

function zoom(by_) {
  if (!plot) return;
  const [x, y] = plot.get("cameraTarget");
  plot.zoomToLocation([x, y], plot.get("cameraDistance") / by_);
}

// The whole map, also where the canvas is taller than wide.
function goHome() {
  const box = by("canvas").parentElement.getBoundingClientRect();
  plot?.zoomToLocation([0, 0], Math.max(1, box.height / box.width));
}

function toggleLasso() {
  const on = by("lasso").ariaPressed != "true";
  by("lasso").ariaPressed = String(on);
  plot?.set({ mouseMode: on ? "lasso" : "panZoom" });
}

const KEYS = {
  "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: goHome, l: toggleLasso,
  n: () => map.shown && state.chosen >= 0 && choose([map.near[state.chosen * map.shown]]), Escape: () => choose([]),
};
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT|TEXTAREA/.test(event.target.tagName)) return;
  const key = event.key.length == 1 ? event.key.toLowerCase() : event.key, inTable = event.target == by("table");
  if (KEYS[key]) KEYS[key]();
  else if (ARROWS[key] && inTable && ARROWS[key][1]) step(-ARROWS[key][1]);
  else if (ARROWS[key] && event.target == by("canvas")) move(...ARROWS[key]);
  else return;
  event.preventDefault();
});

by("find").oninput = () => {
  const start = by("find").value.trim();
  const found = start ? map.uid.findIndex((uid) => uid.startsWith(start)) : -1;
  if (found >= 0) choose([found]);
  else if (start) by("status").textContent = `no film has a uid that begins with ${start}`;
};
by("add").onchange = () => { addFilter(by("add").value); by("add").value = ""; };
by("colour").onchange = colour;
by("lasso").onclick = toggleLasso;
by("home").onclick = goHome;
by("closer").onclick = () => zoom(1.5);
by("farther").onclick = () => zoom(1 / 1.5);
by("clear").onclick = () => choose([]);
by("copy").onclick = copy;
by("save").onclick = save;
by("table").onscroll = () => showRows();

const names = map.columns.map((column) => column.name);
by("colour").append(build("option", { value: "" }, "nothing"), ...names.map((name) => build("option", { value: name }, name)));
by("add").append(build("option", { value: "" }, "…"), ...names.map((name) => build("option", { value: name }, name)));
by("colour").value = names.includes("site") && columnOf.site.values?.length > 1 ? "site" : names.includes("split") ? "split" : "";
by("heads").append(...["uid", ...names].map((name) => build("th", { scope: "col" }, name)));
colour();
show();
goHome();
