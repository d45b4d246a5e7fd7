// Decode the data of the page, choose colours, and draw the points with regl-scatterplot.
"use strict";
const PALETTE = ["#4e9fe5", "#f28e2b", "#59c26a", "#e15759", "#b487d9", "#f2d14b", "#76d7d0", "#ff9da7", "#c49c6a", "#9fb3c8",
  "#d4e157", "#f06fbf"];
const RAMP = ["#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725"];
const UNKNOWN = "#5a6068", UNKNOWN_CODE = 65535;

function unpack(text, Kind) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Kind(bytes.buffer);
}

function readMap(packed) {
  const columns = packed.columns.map((column) => "numbers" in column
    ? { name: column.name, numbers: unpack(column.numbers, Float32Array) }
    : { name: column.name, values: column.values, codes: unpack(column.codes, Uint16Array) });
  return {
    ...packed, columns, uid: packed.uid.split("\n"), x: unpack(packed.x, Float32Array), y: unpack(packed.y, Float32Array),
    patient: unpack(packed.patient, Int32Array), near: unpack(packed.near, Uint32Array), cosine: unpack(packed.cosine, Float32Array),
  };
}

function tell(column, film) {
  if (column.numbers) return Number.isNaN(column.numbers[film]) ? "" : String(+column.numbers[film].toPrecision(4));
  return column.codes[film] == UNKNOWN_CODE ? "" : column.values[column.codes[film]];
}

// Codes for the points, a colour for each, and the entries of the legend.
function chooseColours(column, films) {
  if (!column) return { codes: new Float32Array(films), colours: [PALETTE[0]], legend: [] };
  if (column.values) {
    const last = PALETTE.length - 1, many = column.values.length > PALETTE.length;
    const count = many ? PALETTE.length : column.values.length;
    const rank = rankByFrequency(column, films);
    const codes = Float32Array.from(column.codes, (code) => code == UNKNOWN_CODE ? count : many ? Math.min(rank[code], last) : code);
    const names = many ? [...column.values.keys()].sort((a, b) => rank[a] - rank[b]).slice(0, last).map((code) => column.values[code])
      .concat("other") : column.values;
    const legend = names.map((name, place) => [PALETTE[place], name]);
    const unknown = column.codes.includes(UNKNOWN_CODE) ? [[UNKNOWN, "unknown"]] : [];
    return { codes, colours: [...PALETTE.slice(0, count), UNKNOWN], legend: legend.concat(unknown) };
  }
  let low = Infinity, high = -Infinity;
  for (const value of column.numbers) { if (value < low) low = value; if (value > high) high = value; }
  const steps = RAMP.length, reach = high - low || 1;
  const codes = Float32Array.from(column.numbers, (value) =>
    Number.isNaN(value) ? steps : Math.min(steps - 1, Math.floor(((value - low) / reach) * steps)));
  const legend = [["ramp", `${+low.toPrecision(4)} to ${+high.toPrecision(4)}`], [UNKNOWN, "unknown"]];
  return { codes, colours: [...RAMP, UNKNOWN], legend };
}

function rankByFrequency(column, films) {
  const count = new Array(column.values.length).fill(0);
  for (let film = 0; film < films; film++) if (column.codes[film] != UNKNOWN_CODE) count[column.codes[film]]++;
  const rank = [];
  [...count.keys()].sort((a, b) => count[b] - count[a]).forEach((code, place) => { rank[code] = place; });
  return rank;
}

// The plot, or one that draws nothing where there is no WebGL.
function createPlot(canvas, films, onSelect, onDeselect) {
  const probe = document.createElement("canvas");
  if (!probe.getContext("webgl2") && !probe.getContext("webgl")) return null;
  const box = canvas.parentElement.getBoundingClientRect();
  const plot = reglScatterplot.default({
    canvas, width: box.width, height: box.height, pointSize: films > 200000 ? 1.5 : films > 20000 ? 2.5 : 4,
    opacity: films > 20000 ? 0.6 : 0.85, backgroundColor: "#16181c", pointColorActive: "#ffffff", pointColorHover: "#ffffff",
    lassoColor: "#8ab8f0", performanceMode: films > 200000, deselectOnEscape: false, lassoMinDelay: 10,
    pointSizeSelected: 4, pointOutlineWidth: 3,
  });
  plot.subscribe("select", ({ points }) => onSelect(points));
  plot.subscribe("deselect", onDeselect);
  new ResizeObserver(() => {
    const now = canvas.parentElement.getBoundingClientRect();
    plot.set({ width: now.width, height: now.height });
  }).observe(canvas.parentElement);
  return plot;
}
