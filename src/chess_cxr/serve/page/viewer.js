// Draw films through a grey window, at any size, with a heat map over them.
const element = (id) => document.getElementById(id);

function readGrey(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const colours = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
  const grey = new Uint8Array(bitmap.width * bitmap.height);
  for (let at = 0; at < grey.length; at += 1) grey[at] = colours[4 * at];
  return { grey, width: bitmap.width, height: bitmap.height };
}

function buildWindow(centre, width) {
  const low = 255 * (centre - width / 2) / 100, span = 255 * width / 100;
  return Uint8ClampedArray.from({ length: 256 }, (_, grey) => 255 * (grey - low) / span);
}

function draw(canvas, { width, height }, greyAt, shown) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const picture = new ImageData(width, height);
  const words = new Uint32Array(picture.data.buffer);
  for (let at = 0; at < words.length; at += 1) words[at] = 0xff000000 | (shown[greyAt(at)] * 0x10101);
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

export class Viewer {
  #film = null;
  #boneless = null;
  #address = "";

  constructor() {
    for (const id of ["zoom", "centre", "width", "strength", "blend", "side"]) {
      element(id).addEventListener("input", () => this.draw());
    }
    element("reset").addEventListener("click", () => this.reset());
    new ResizeObserver(() => this.#fit()).observe(element("view"));
    const windows = [...document.querySelectorAll(".window")];
    for (const pane of windows) {
      pane.addEventListener("scroll", () => {
        for (const other of windows) {
          if (other !== pane) other.scrollTo(pane.scrollLeft, pane.scrollTop);
        }
      });
      pane.addEventListener("wheel", (event) => {
        if (!event.ctrlKey) return;
        event.preventDefault();
        element("zoom").value = Number(element("zoom").value) + (event.deltaY < 0 ? 25 : -25);
        this.draw();
      }, { passive: false });
    }
  }

  show(bitmap) {
    this.#film = readGrey(bitmap);
    this.#boneless = null;
    this.showHeat(null);
    this.reset();
  }

  showBoneless(bitmap) {
    this.#boneless = bitmap && readGrey(bitmap);
    this.draw();
  }

  showHeat(blob) {
    if (this.#address) URL.revokeObjectURL(this.#address);
    this.#address = blob ? URL.createObjectURL(blob) : "";
    element("heat").hidden = !blob;
    if (blob) element("heat").src = this.#address;
  }

  reset() {
    const first = { zoom: 100, centre: 50, width: 100, strength: 0, blend: 0 };
    for (const [id, value] of Object.entries(first)) element(id).value = value;
    element("side").checked = false;
    this.draw();
  }

  draw() {
    const read = (id) => Number(element(id).value);
    const told = { zoom: "zoom", centre: "centre", width: "width", strength: "heat", blend: "bone" };
    for (const [id, name] of Object.entries(told)) element(`${name}-told`).value = `${read(id)} %`;
    element("heat").style.opacity = read("strength") / 100;
    element("beside").hidden = !(element("side").checked && this.#boneless);
    if (!this.#film) return;
    const shown = buildWindow(read("centre"), read("width"));
    const film = this.#film, boneless = this.#boneless, part = boneless ? read("blend") / 100 : 0;
    const mixed = part
      ? (at) => Math.round(film.grey[at] + part * (boneless.grey[at] - film.grey[at]))
      : (at) => film.grey[at];
    draw(element("film"), film, mixed, shown);
    element("caption").textContent = part ? `Film, ${read("blend")} % of the bone removed (estimate)` : "Film";
    if (boneless) draw(element("boneless"), boneless, (at) => boneless.grey[at], shown);
    this.#fit();
  }

  #fit() {
    if (!this.#film) return;
    const zoom = Number(element("zoom").value) / 100;
    for (const pane of document.querySelectorAll(".window")) {
      if (!pane.clientWidth) continue;
      const most = Math.min(0.75 * window.innerHeight, 960);
      const whole = Math.min(pane.clientWidth, most * this.#film.width / this.#film.height);
      pane.firstElementChild.style.width = `${Math.round(whole * zoom)}px`;
    }
  }
}
