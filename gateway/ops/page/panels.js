// What is wrong in words, upstreams, recent failures, and the config in force.

import { html, useEffect, useState } from "./vendor/htm-preact.js";
import { get } from "./connection.js";
import { LEGS, ago, bytes, clock, count, perSecond, seconds } from "./format.js";

export function Verdict({ snapshot, stale }) {
  const problems = snapshot.problems;
  const hasError = problems.some((problem) => problem.severity === "error");
  const isDraining = snapshot.reasons.includes("draining");
  const kind = hasError ? "error" : problems.length || isDraining ? "warning" : "fine";
  const summary = problems.length ? count(problems.length, "problem") : "No problem";
  return html`<section class=${`verdict ${kind}`} aria-label="What is wrong">
    <p class="hidden" role="status">${summary}</p>
    ${isDraining && html`<p class="problem"><b class="tag">Draining</b> The gateway stops when the transfers under way have ended.</p>`}
    ${problems.length === 0 &&
    html`<p class="problem"><b class="tag">Fine</b>
      ${snapshot.transfers_total ? `${count(snapshot.transfers_total, "transfer")} under way, and nothing waits longer than usual.` : "Nothing is under way, and nothing failed in the last minute."}</p>`}
    ${problems.slice(0, 6).map(
      (problem) => html`<p class="problem" key=${problem.text} data-severity=${problem.severity}>
        <b class=${`tag who-${problem.blame}`}>${problem.blame}</b> ${code(problem.text)}
      </p>`,
    )}
    ${problems.length > 6 && html`<p class="sub">and ${problems.length - 6} more</p>`}
    ${stale && html`<p class="hidden">The page shows an old state.</p>`}
  </section>`;
}

// Text with `names` marked.
const code = (text) => text.split("`").map((part, index) => (index % 2 ? html`<code>${part}</code>` : part));

export function Upstreams({ upstreams, now }) {
  if (!upstreams.length) return null;
  return html`<section class="card" aria-labelledby="upstreams-title">
    <h2 id="upstreams-title">Upstreams</h2>
    <div class="upstreams">${upstreams.map((each) => html`<${Upstream} key=${each.upstream} upstream=${each} now=${now} />`)}</div>
  </section>`;
}

function Upstream({ upstream, now }) {
  const { endpoints, last_minute: recent } = upstream;
  const upCount = endpoints.filter((each) => each.is_up).length;
  const state = upCount === endpoints.length ? "up" : upCount ? "partly" : "down";
  const text = { up: "up", partly: `${upCount} of ${endpoints.length} up`, down: "down" }[state];
  const used = upstream.slots ? Math.min(1, upstream.in_flight / upstream.slots) : 0;
  return html`<article class=${`upstream ${state}`} data-upstream=${upstream.upstream} aria-label=${`Upstream ${upstream.upstream}`}>
    <h3>${upstream.upstream} <span class=${`state ${state}`}>${text}</span></h3>
    <dl class="facts">
      <div><dt>In flight</dt><dd>${upstream.in_flight}${upstream.slots === null ? "" : html` <small>of ${upstream.slots}</small>`}</dd></div>
      <div><dt>Queue</dt><dd class=${upstream.queue_length ? "warn" : ""}>${upstream.queue_length}</dd></div>
      <div><dt>Response p50</dt><dd>${seconds(recent.response_seconds_p50)}</dd></div>
      <div><dt>p99</dt><dd>${seconds(recent.response_seconds_p99)}</dd></div>
      <div><dt>Requests</dt><dd>${perSecond(recent.requests_per_second)}<small>/s</small></dd></div>
      <div><dt>Errors</dt><dd class=${recent.errors_per_second ? "bad" : ""}>${perSecond(recent.errors_per_second)}<small>/s</small></dd></div>
    </dl>
    ${upstream.slots !== null &&
    html`<div class="bar slots" role="img" aria-label=${`${upstream.in_flight} of ${upstream.slots} slots in use`}>
      <i class=${used >= 1 ? "full" : ""} style=${{ width: `${100 * used}%` }}></i>
    </div>`}
    <ul class="endpoints">
      ${endpoints.map((each) => html`<${Endpoint} key=${each.endpoint} endpoint=${each} now=${now} />`)}
    </ul>
  </article>`;
}

function Endpoint({ endpoint, now }) {
  const facts = [count(endpoint.in_flight, "request"), `${endpoint.errors.toLocaleString("en")} of ${endpoint.requests.toLocaleString("en")} failed`];
  const since = endpoint.since ? `since ${clock(endpoint.since)} (${ago(endpoint.since, now)})` : null;
  const ejected = endpoint.ejected_until ? `ejected until ${clock(endpoint.ejected_until)}` : null;
  const why = endpoint.is_up ? null : endpoint.reason;
  return html`<li>
    <span class=${`dot ${endpoint.is_up ? "up" : "down"}`} aria-hidden="true"></span>
    <div>
      <span class="mono">${endpoint.endpoint}</span> <span class=${endpoint.is_up ? "sub" : "sub bad"}>${endpoint.is_up ? "up" : "down"}${since ? ` ${since}` : ""}</span>
      ${(why || ejected) && html`<span class="sub bad">${[why, ejected].filter(Boolean).join("; ")}</span>`}
      <span class="sub">${facts.join(", ")}</span>
    </div>
  </li>`;
}

const FIRST_FAILURES = 8;

export function Failures({ failures, route, now }) {
  const [isWhole, setWhole] = useState(false);
  const found = failures.filter((each) => route === null || (each.route ?? "") === route);
  const shown = isWhole ? found : found.slice(0, FIRST_FAILURES);
  return html`<section class="card" aria-labelledby="failures-title">
    <h2 id="failures-title">Recent failures</h2>
    ${shown.length === 0
      ? html`<p class="empty">No request has failed${route === null ? "" : " on this route"}.</p>`
      : html`<div class="scroll" tabindex="0" role="region" aria-label="Table of failures">
          <table class="failures">
            <thead>
              <tr>
                <th scope="col">When</th><th scope="col">Blame</th><th scope="col">What</th><th scope="col">Request</th>
                <th scope="col">Took</th><th scope="col">Request ID</th>
              </tr>
            </thead>
            <tbody>
              ${shown.map((each) => html`<${Failure} key=${each.time + each.request_id} failure=${each} now=${now} />`)}
            </tbody>
          </table>
        </div>`}
    ${found.length > FIRST_FAILURES &&
    html`<div class="pages"><button onClick=${() => setWhole(!isWhole)}>${isWhole ? "Show fewer" : `Show all ${found.length}`}</button></div>`}
  </section>`;
}

function Failure({ failure, now }) {
  return html`<tr>
    <td class="number">${clock(failure.time)}<span class="sub">${ago(failure.time, now)}</span></td>
    <td><span class=${`chip who-${failure.blame === "gateway" ? "filter" : failure.blame}`}>${failure.blame}</span></td>
    <td class="column-reason"><b>${failure.status}</b> <code>${failure.code ?? failure.outcome}</code><span class="sub" title=${failure.reason}>${failure.reason}</span></td>
    <td class="column-target">
      <span class="what" title=${failure.target}><b>${failure.method}</b> ${failure.target}</span>
      <span class="sub">${failure.route && html`<span class="route">${failure.route}</span>`} from ${failure.client}${failure.upstream ? ` to ${failure.upstream}` : ""}, ↑ ${bytes(failure.upload_bytes)}, ↓ ${bytes(failure.download_bytes)}</span>
    </td>
    <td class="number">${seconds(failure.seconds)}<span class="sub">mostly ${LEGS[failure.slowest_leg].text}</span></td>
    <td><span class="mono id">${failure.request_id}</span></td>
  </tr>`;
}

export function Config({ generation }) {
  const [isOpen, setOpen] = useState(false);
  const [document, setDocument] = useState(null);
  useEffect(() => {
    if (isOpen) get("config").then(setDocument, () => setDocument(null));
  }, [isOpen, generation]);
  return html`<section class="card" aria-labelledby="config-title">
    <details onToggle=${(event) => setOpen(event.target.open)}>
      <summary><h2 id="config-title">Config in force</h2> <span class="sub">generation ${generation}${document ? `, loaded ${clock(document.loaded)}` : ""}</span></summary>
      ${document && html`<pre tabindex="0" aria-label="Config">${yaml(document.config)}</pre>`}
    </details>
  </section>`;
}

// JSON as YAML, which is what the config is written in.
function yaml(value, indent = "") {
  const lines = [];
  for (const [key, each] of Array.isArray(value) ? value.map((each) => [null, each]) : Object.entries(value)) {
    const start = key === null ? `${indent}-` : `${indent}${key}:`;
    if (each === null || typeof each !== "object") lines.push(`${start} ${scalar(each)}`);
    else if (Object.keys(each).length === 0) lines.push(`${start} ${Array.isArray(each) ? "[]" : "{}"}`);
    else if (key === null) lines.push(`${start} ${yaml(each, `${indent}  `).trimStart()}`);
    else lines.push(start, yaml(each, `${indent}  `));
  }
  return lines.join("\n");
}

const scalar = (value) => (typeof value === "string" && !/^[\w./:@${}*-]+$/.test(value) ? JSON.stringify(value) : String(value));
