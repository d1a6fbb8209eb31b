// The live page: what the API says, every second.

import { html, render, useEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import { Charts, MAX_COLORS, colorOf } from "./charts.js";
import { get, setToken, watch } from "./connection.js";
import { clock, count, perSecond, rate, seconds } from "./format.js";
import { History, KINDS } from "./history.js";
import { Config, Failures, Upstreams, Verdict } from "./panels.js";
import { Transfers } from "./transfers.js";

// Without an event for this long, what is shown is old.
const STALE_MS = 3500;
// An event carries the oldest 200 transfers; where there are more, all of them are asked for this often.
const ALL_MS = 2000;

function App() {
  const [snapshot, setSnapshot] = useState(null);
  const [state, setState] = useState("connecting");
  // How often a token was asked for since there was a connection: more than once means that one was wrong.
  const [locks, setLocks] = useState(0);
  const [route, setRoute] = useState(null);
  const [now, setNow] = useState(Date.now());
  const received = useRef(0);
  const history = useMemo(() => new History(), []);
  const retry = useRef(() => {});
  useEffect(() => {
    let isOpening = true;
    function take(next) {
      received.current = Date.now();
      if (!isOpening) history.add(next);
      setSnapshot(next);
      setNow(Date.now());
    }
    async function opened(next) {
      setState(next);
      setLocks((count) => (next === "live" ? 0 : next === "locked" ? count + 1 : count));
      if (next !== "live") {
        isOpening = true;
        return;
      }
      // Also what was missed while there was no connection.
      await get("history").then((document) => history.load(document), () => {});
      isOpening = false;
    }
    retry.current = watch(take, opened);
    const timer = setInterval(() => setNow(Date.now()), 1000);
    return () => clearInterval(timer);
  }, []);
  const age = now - received.current;
  const isStale = snapshot !== null && age > STALE_MS;
  const rows = useAllTransfers(snapshot);
  return html`
    <${Header} snapshot=${snapshot} state=${state} isStale=${isStale} />
    ${state === "locked" && html`<${TokenPrompt} isWrong=${locks > 1} onToken=${() => retry.current()} />`}
    ${isStale &&
    html`<p class="stale" role="alert">No data for ${seconds(Math.round(age / 1000))}: this is the state of ${clock(snapshot.time)}. Connecting again.</p>`}
    ${snapshot === null
      ? html`<main><p class="loading">${state === "lost" ? "The gateway cannot be reached. Trying again." : state === "locked" ? "A token is needed." : "Connecting."}</p></main>`
      : html`<main class=${isStale ? "old" : ""}>
          <${Verdict} snapshot=${snapshot} stale=${isStale} onRoute=${setRoute} />
          <${Routes} routes=${snapshot.routes} route=${route} onRoute=${setRoute} />
          <${Moving} snapshot=${snapshot} history=${history} route=${route} />
          <${Transfers} rows=${rows} total=${snapshot.transfers_total} problems=${snapshot.problems} route=${route} />
          <${Upstreams} upstreams=${snapshot.upstreams} rows=${rows} now=${now} />
          <${Failures} failures=${snapshot.failures} route=${route} now=${now} />
          <${Config} generation=${snapshot.config_generation} />
        </main>`}
  `;
}

// All transfers: those of the snapshot, or, where it has not all of them, what was asked for last.
function useAllTransfers(snapshot) {
  const [all, setAll] = useState([]);
  const isCut = snapshot !== null && snapshot.transfers_total > snapshot.transfers.length;
  useEffect(() => {
    if (!isCut) return undefined;
    let isOver = false;
    async function poll() {
      while (!isOver) {
        await get("transfers").then((document) => setAll(document.transfers), () => {});
        await new Promise((resolve) => setTimeout(resolve, ALL_MS));
      }
    }
    poll();
    return () => {
      isOver = true;
    };
  }, [isCut]);
  return isCut && all.length ? all : (snapshot?.transfers ?? []);
}

function Header({ snapshot, state, isStale }) {
  const isLive = state === "live" && !isStale;
  const readiness = snapshot === null ? null : snapshot.is_ready ? "ready" : snapshot.reasons[0] || "not ready";
  return html`<header>
    <h1>Streaming gateway</h1>
    ${snapshot && html`<span class="sub">${snapshot.host}, version ${snapshot.version}</span>`}
    <span class="space"></span>
    ${readiness && html`<span class=${`state ${snapshot.is_ready ? "up" : "down"}`}>${readiness}</span>`}
    <span class=${`live ${isLive ? "on" : "off"}`} id="connection"><i aria-hidden="true"></i>${isLive ? "live" : state === "locked" ? "locked" : "connecting"}</span>
  </header>`;
}

function Routes({ routes, route, onRoute }) {
  return html`<div class="routes" role="group" aria-label="Filter by route">
    <button aria-pressed=${route === null} onClick=${() => onRoute(null)}>All routes</button>
    ${routes.map(
      (each, index) => html`<button key=${each.route} aria-pressed=${route === each.route} onClick=${() => onRoute(route === each.route ? null : each.route)}>
        <i class="swatch" style=${{ background: colorOf(index) }}></i>${each.route || "no route"}
        ${each.in_flight > 0 && html` <span class="badge">${each.in_flight}<span class="hidden"> in flight</span></span>`}
      </button>`,
    )}
  </div>`;
}

function Moving({ snapshot, history, route }) {
  const routes = snapshot.routes.filter((each) => route === null || each.route === route);
  const totals = Object.fromEntries(KINDS.map((kind) => [kind, routes.reduce((sum, each) => sum + each.now[kind], 0)]));
  const names = routes.map((each) => each.route);
  const colors = new Map(snapshot.routes.map((each, index) => [each.route, index % MAX_COLORS]));
  useEffect(() => {
    const { problems, host } = snapshot;
    const mark = problems.length ? `(${count(problems.length, "problem")}) ` : "";
    document.title = `${mark}${host} ↑ ${rate(totals.upload_bytes_per_second)} ↓ ${rate(totals.download_bytes_per_second)} ${perSecond(totals.requests_per_second)} req/s`;
  });
  return html`<${Charts} history=${history} totals=${totals} names=${names} colors=${colors} />`;
}

function TokenPrompt({ isWrong, onToken }) {
  const dialog = useRef(null);
  const input = useRef(null);
  useEffect(() => dialog.current.showModal(), []);
  function submit(event) {
    event.preventDefault();
    setToken(input.current.value.trim());
    onToken();
  }
  return html`<dialog ref=${dialog} aria-labelledby="token-title" onCancel=${(event) => event.preventDefault()}>
    <form onSubmit=${submit}>
      <h2 id="token-title">Token</h2>
      <p>This gateway asks for the token of <code>ops.token</code>. It is kept until this tab is closed.</p>
      ${isWrong && html`<p role="alert" class="bad">That was not the token.</p>`}
      <label>Token <input ref=${input} type="password" autocomplete="off" required autofocus /></label>
      <div class="buttons"><button class="primary" type="submit">Open</button></div>
    </form>
  </dialog>`;
}

const place = document.getElementById("app");
place.textContent = "";
render(html`<${App} />`, place);
