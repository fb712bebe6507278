// The demo page: makes one client and shows its state; the panels are in modules of their own.

import { Calls } from "./calls.js";
import { Chat } from "./chat.js";
import { Snippets } from "./snippets.js";
import { Wire } from "./wire.js";

const { websocket, client: clientPath } = document.documentElement.dataset;
const peloton = await import(clientPath);

const PING_EVERY_MS = 5000;
const TREND_POINTS = 16;

const STATES = {
  connecting: "Connecting",
  open: "Connected",
  reconnecting: "Reconnecting",
  closed: "Closed",
};

const wire = new Wire(peloton);
const client = new peloton.Peloton(websocket, {
  trace: (direction, text) => wire.add(direction, text),
});
// The page shows how to use the module; the console is the place to try.
window.client = client;

const panel = document.getElementById("connection");
const stateText = document.getElementById("connection-state");
const detailText = document.getElementById("connection-detail");
const trend = document.querySelector("#connection-trend polyline");
let roundTrips = [];

function showState({ state, code, reason, delay }) {
  panel.dataset.state = state;
  stateText.textContent = STATES[state];
  detailText.textContent = "";
  document.title = state === "open" ? "pelotontx demo" : `${STATES[state]}: pelotontx demo`;
  if (state === "open") {
    wire.note("The WebSocket is open.");
    measure();
  } else {
    const why = reason ? `${code}, ${reason}` : code;
    const next = delay === undefined ? "" : ` Next attempt in ${Math.round(delay)} ms.`;
    wire.note(`The WebSocket is closed (${why}).${next}`);
  }
}

async function measure() {
  if (client.state !== "open" || document.hidden) return;
  try {
    roundTrips = [...roundTrips, await client.ping({ timeout: PING_EVERY_MS })].slice(-TREND_POINTS);
  } catch (error) {
    // A lost connection has a state of its own to show; a slow one just shows no new figure.
    if (error instanceof peloton.PelotonError) return;
    throw error;
  }
  detailText.textContent = `${roundTrips.at(-1).toFixed(1)} ms round trip`;
  if (roundTrips.length < 3) return;
  const top = Math.max(...roundTrips, 1);
  const step = 60 / (roundTrips.length - 1);
  const points = roundTrips.map((ms, i) => `${(i * step).toFixed(1)},${(19 - (ms / top) * 18).toFixed(1)}`);
  trend.setAttribute("points", points.join(" "));
  trend.parentElement.classList.add("drawn");
}

client.addEventListener("state", ({ detail }) => showState(detail));
setInterval(measure, PING_EVERY_MS);
document.addEventListener("visibilitychange", measure);

const snippets = new Snippets({ websocket, clientPath });
new Calls(client, peloton, (choice) => snippets.show(choice));
new Chat(client, peloton);
