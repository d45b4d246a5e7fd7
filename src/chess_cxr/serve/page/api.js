// Requests to the server that this page came from, and to no other.
let token = "";

export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export function useToken(text) {
  token = text.trim();
}

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Refused(0, "the server cannot be reached");
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Refused(response.status, problem.detail ?? `the server answered ${response.status}`);
}

function post(path, film, accept) {
  const headers = { "Content-Type": "application/octet-stream", Accept: accept };
  return ask(path, { method: "POST", body: film, headers });
}

async function getPicture(response) {
  return createImageBitmap(await (await response).blob());
}

export const listModels = async () => (await ask("/v1/models")).json();
export const predict = async (film) => (await (await post("/v1/predict", film, "application/json")).json()).answers;
export const getFilm = (film) => getPicture(post("/v1/film", film, "image/png"));
export const getBoneless = (film, side) => getPicture(post(`/v1/suppress-bones?side=${side}`, film, "image/png"));
export const getNeighbours = async (film) => (await (await post("/v1/neighbours", film, "application/json")).json()).neighbours;
export const getKnown = async (number) => (await ask(`/v1/known/${number}`)).blob();
export async function getHeatMap(film, model, label) {
  const query = new URLSearchParams({ model, label, style: "map" });
  return (await post(`/v1/saliency?${query}`, film, "image/png")).blob();
}
