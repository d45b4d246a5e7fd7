// The page: films in, answers out.  It asks nobody but its own server.
import { getBoneless, getFilm, getHeatMap, getKnown, getNeighbours, listModels, predict, useToken } from "./api.js";
import { Viewer } from "./viewer.js";
import { FLAGS, explainNumbers, explainPoint } from "./words.js";

const element = (id) => document.getElementById(id);
const viewer = new Viewer();
const films = [];
let models = null, shown = null;

function tell(text, bad = false) {
  element("status").textContent = text;
  element("status").classList.toggle("bad", bad);
}

function build(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

async function begin() {
  try {
    models = (await listModels()).models;
    element("login").hidden = true;
    tell("");
  } catch (problem) {
    element("login").hidden = problem.status !== 401;
    tell(problem.message, true);
  }
  const has = (task) => models?.some((model) => model.task === task);
  for (const [kind, task] of [["heat", "classify"], ["bone", "bones"]]) {
    for (const part of document.querySelectorAll(`.${kind}-part`)) part.hidden = !has(task);
  }
}

async function take(files) {
  if (!models) await begin();
  if (!models) return;
  let refused = 0, last = "";
  for (const [number, file] of [...files].entries()) {
    tell(`Reading film ${number + 1} of ${files.length} …`);
    try {
      const classifies = models.some((model) => model.task === "classify");
      const answers = classifies ? await predict(file) : [];
      const alike = models.some((model) => model.task === "neighbours") ? await getNeighbours(file) : [];
      const film = { file, answers, alike, bitmap: await getFilm(file), heat: new Map() };
      films.push(film);
      show(film);
    } catch (problem) {
      refused += 1;
      last = `${file.name}: ${problem.message}`;
      if (problem.status === 401) await begin();
    }
  }
  if (refused) tell(`${last}${refused > 1 ? ` (and ${refused - 1} more)` : ""}`, true);
  else tell(`${files.length} ${files.length === 1 ? "film" : "films"} answered.`);
}

function show(film) {
  shown = film;
  element("answer").hidden = false;
  viewer.show(film.bitmap);
  listFilms();
  const options = film.answers.flatMap((answer) => answer.findings.map((finding) => {
    const several = film.answers.length > 1 ? `${answer.model}: ` : "";
    return build("option", several + finding.label, { value: JSON.stringify([answer.model, finding.label]) });
  }));
  element("label").replaceChildren(...options);
  const best = film.answers.flatMap((answer) => answer.findings.map((finding) => [answer.model, finding]))
    .sort((one, two) => rank(two[1]) - rank(one[1]))[0];
  if (best) element("label").value = JSON.stringify([best[0], best[1].label]);
  element("findings").replaceChildren(...listFlags(film), ...film.answers.map(buildAnswer), ...buildAlike(film.alike));
}

const rank = (finding) => finding.probability / (finding.threshold || 1);

function listFilms() {
  element("films").hidden = films.length < 2;
  element("films").replaceChildren(...films.map((film) => {
    const button = build("button", film.file.name, { type: "button", "aria-pressed": film === shown });
    button.addEventListener("click", () => show(film));
    return button;
  }));
}

function listFlags(film) {
  const flags = film.answers[0]?.flags ?? [];
  if (!flags.length) return [];
  const list = build("ul", "", { class: "flags", "aria-label": "Doubts about the film" });
  list.append(...flags.map((flag) => build("li", FLAGS[flag] ?? flag)));
  return [list];
}

function buildAnswer(answer) {
  const box = build("section");
  const table = build("table");
  const head = build("tr");
  for (const word of ["Finding", "Probability", "", "Threshold reached"]) head.append(build("th", word, { scope: "col" }));
  head.children[2].setAttribute("aria-hidden", "true");
  const body = build("tbody");
  body.append(...answer.findings.map((finding) => buildRow(finding, answer)));
  table.append(build("thead"), body);
  table.tHead.append(head);
  const more = build("details");
  more.append(build("summary", "Hashes"), build("div", `weights ${answer.model_sha256}`),
    build("div", `pixel contract ${answer.contract_sha256}`));
  box.append(build("h2", answer.model), table, build("p", explainPoint(answer), { class: "note" }),
    build("p", explainNumbers(answer), { class: "note" }), more);
  return box;
}

function buildRow(finding, answer) {
  const row = build("tr");
  const number = `${finding.probability.toFixed(3)}${answer.calibrated || finding.calibrated ? "" : "*"}`;
  const bar = build("td", "", { class: "bar", "aria-hidden": "true" });
  const track = build("div", "", { class: "track" });
  const fill = build("div", "", { class: "fill" });
  fill.style.width = `${100 * finding.probability}%`;
  track.append(fill);
  if (finding.threshold !== null) {
    const mark = build("div", "", { class: "mark" });
    mark.style.left = `${100 * finding.threshold}%`;
    track.append(mark);
  }
  bar.append(track);
  const said = finding.positive === null ? "–" : `${finding.positive ? "yes" : "no"} (${finding.threshold.toFixed(3)})`;
  row.append(build("th", finding.label.replaceAll("_", " "), { scope: "row" }),
    build("td", number, { class: "number", title: String(finding.probability) }), bar,
    build("td", said, { class: finding.positive ? "yes" : "" }));
  return row;
}

function buildAlike(alike) {
  if (!alike.length) return [];
  const box = build("section");
  const list = build("ul", "", { class: "alike" });
  list.append(...alike.map((known) => {
    const item = build("li");
    const named = Object.entries(known.labels).filter(([, value]) => value === 1).map(([name]) => name.replaceAll("_", " "));
    const picture = build("img", "", { alt: `Known film ${known.number}` });
    getKnown(known.number).then((blob) => {
      picture.src = URL.createObjectURL(blob);
      picture.addEventListener("load", () => URL.revokeObjectURL(picture.src));
    }).catch(() => picture.remove());
    item.append(picture, build("div", named.join(", ") || "no finding known"), build("div", `cosine ${known.cosine.toFixed(2)}`));
    return item;
  }));
  box.append(build("h2", "Nearest known films"), list,
    build("p", "Films of the store that the encoder finds most alike, with the labels that the store gives them.", { class: "note" }));
  return [box];
}

async function showHeat() {
  const film = shown, key = element("label").value;
  if (!film || !key || Number(element("strength").value) === 0) return;
  try {
    if (!film.heat.has(key)) film.heat.set(key, getHeatMap(film.file, ...JSON.parse(key)));
    const blob = await film.heat.get(key);
    if (film === shown && key === element("label").value) viewer.showHeat(blob);
  } catch (problem) {
    film.heat.delete(key);
    tell(problem.message, true);
  }
}

async function showBoneless() {
  const film = shown;
  if (!film || !(element("side").checked || Number(element("blend").value))) return;
  try {
    film.boneless ??= getBoneless(film.file, Math.max(film.bitmap.width, film.bitmap.height));
    const bitmap = await film.boneless;
    if (film === shown) viewer.showBoneless(bitmap);
  } catch (problem) {
    film.boneless = null;
    tell(problem.message, true);
  }
}

element("files").addEventListener("change", (event) => take([...event.target.files]).then(() => { event.target.value = ""; }));
element("strength").addEventListener("change", showHeat);
element("label").addEventListener("change", () => {
  if (Number(element("strength").value) === 0) element("strength").value = 60;
  viewer.draw();
  showHeat();
});
for (const id of ["blend", "side"]) element(id).addEventListener("change", showBoneless);
element("login").addEventListener("submit", (event) => {
  event.preventDefault();
  useToken(element("token").value);
  begin();
});
for (const [kind, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    element("drop").classList.toggle("over", over);
    if (kind === "drop" && event.dataTransfer.files.length) take([...event.dataTransfer.files]);
  });
}
begin();
