// What is wrong in words, upstreams, recent failures, and the config in force.

import { html, useEffect, useState } from "./vendor/htm-preact.js";
import { get } from "./connection.js";
import { LEGS, ago, bytes, clock, count, perSecond, seconds } from "./format.js";

const MOST_PROBLEMS = 6;

export function Verdict({ snapshot, stale, onRoute }) {
  const problems = snapshot.problems;
  const hasError = problems.some((problem) => problem.severity === "error");
  const isDraining = snapshot.reasons.includes("draining");
  const kind = hasError ? "error" : problems.length || isDraining ? "warning" : "fine";
  const summary = problems.length ? count(problems.length, "problem") : "No problem";
  const fine = snapshot.transfers_total
    ? `${count(snapshot.transfers_total, "transfer")} under way, and nothing waits longer than usual.`
    : "Nothing is under way, and nothing failed in the last minute.";
  return html`<section class=${`verdict ${kind}`} aria-label="What is wrong">
    <p class="hidden" role="status">${summary}</p>
    ${isDraining && html`<${Problem} tag="draining">The gateway stops when the transfers under way have ended.<//>`}
    ${problems.length === 0 && html`<${Problem} tag="fine" severity="fine">${fine}<//>`}
    ${problems.slice(0, MOST_PROBLEMS).map((problem) => {
      // The color of the bars below: of what is waited for, or else of whose fault it is.
      const who = problem.leg ? LEGS[problem.leg].who : problem.blame;
      return html`<${Problem} key=${problem.text} tag=${who} severity=${problem.severity}>${withRoutes(problem, onRoute)}<//>`;
    })}
    ${problems.length > MOST_PROBLEMS && html`<p class="problem warning"><span></span>and ${problems.length - MOST_PROBLEMS} more</p>`}
    ${stale && html`<p class="hidden">The page shows an old state.</p>`}
  </section>`;
}

const Problem = ({ tag, severity = "warning", children }) =>
  html`<p class=${`problem ${severity}`} data-severity=${severity}><b class=${`tag who-${tag}`}>${tag}</b><span>${children}</span></p>`;

// The text of a problem, with its `route` as a button that shows only this one.
function withRoutes({ text, route }, onRoute) {
  return text.split("`").map((part, index) => {
    if (index % 2 === 0) return part;
    return part === route ? html`<button class="name" onClick=${() => onRoute(route)}>${part}</button>` : html`<code>${part}</code>`;
  });
}

export function Upstreams({ upstreams, rows, now }) {
  if (!upstreams.length) return null;
  return html`<section class="card" aria-labelledby="upstreams-title">
    <h2 id="upstreams-title">Upstreams</h2>
    <div class="upstreams">${upstreams.map((each) => html`<${Upstream} key=${each.upstream} upstream=${each} rows=${rows} now=${now} />`)}</div>
  </section>`;
}

function Upstream({ upstream, rows, now }) {
  const { endpoints, last_minute: recent } = upstream;
  const upCount = endpoints.filter((each) => each.is_up).length;
  const state = upCount === endpoints.length ? "up" : upCount ? "partly" : "down";
  const text = { up: "up", partly: `${upCount} of ${endpoints.length} up`, down: "down" }[state];
  // The response times are those of responses that came: what has none yet is not in them.
  const waits = rows
    .filter((row) => row.upstream === upstream.upstream && row.waiting_on === "upstream_response" && row.waiting_seconds >= 1)
    .map((row) => row.waiting_seconds);
  const used = upstream.slots ? Math.min(1, upstream.in_flight / upstream.slots) : 0;
  return html`<article class=${`upstream ${state}`} data-upstream=${upstream.upstream} aria-label=${`Upstream ${upstream.upstream}`}>
    <h3><span class=${`state ${state}`}>${text}</span> <span class="name">${upstream.upstream}</span></h3>
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
    ${waits.length > 0 &&
    html`<p class="sub waits"><b class="chip who-model">${waits.length.toLocaleString("en")}</b> ${waits.length === 1 ? "waits" : "wait"} for a response, the longest for ${seconds(Math.max(...waits))}</p>`}
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
  const [isEach, setEach] = useState(false);
  const found = failures.filter((each) => route === null || (each.route ?? "") === route);
  const kinds = groups(found);
  const shown = isEach ? found.map((last) => ({ last, times: 1 })) : kinds.slice(0, FIRST_FAILURES);
  return html`<section class="card" aria-labelledby="failures-title">
    <div class="title">
      <h2 id="failures-title">Recent failures</h2>
      ${found.length > 0 && html`<span class="sub">the last ${found.length}, those of one kind in one row</span>`}
    </div>
    ${found.length === 0
      ? html`<p class="empty">No request has failed${route === null ? "" : " on this route"}.</p>`
      : html`<div class="scroll" tabindex="0" role="region" aria-label="Table of failures">
          <table class="failures">
            <thead>
              <tr>
                <th scope="col" class="column-when">When</th><th scope="col" class="column-blame">Blame</th><th scope="col">What</th>
                <th scope="col">Request</th><th scope="col" class="column-took">Took</th><th scope="col" class="column-id">Request ID</th>
              </tr>
            </thead>
            <tbody>
              ${shown.map(({ last, times }) => html`<${Failure} key=${isEach ? last.request_id : kindOf(last)} failure=${last} times=${times} now=${now} />`)}
            </tbody>
          </table>
        </div>`}
    ${(shown.length < found.length || isEach) &&
    html`<div class="pages"><button onClick=${() => setEach(!isEach)}>${isEach ? "One row for each kind" : `Show each of the ${found.length}`}</button></div>`}
  </section>`;
}

const kindOf = (failure) => [failure.blame, failure.status, failure.code, failure.route, failure.endpoint].join(" ");

// The last failure of each kind, and how many there are. An upstream that is down would fill the table with the same row.
function groups(failures) {
  const found = new Map();
  for (const failure of failures) {
    const kind = kindOf(failure);
    if (!found.has(kind)) found.set(kind, { last: failure, times: 0 });
    found.get(kind).times += 1;
  }
  return [...found.values()];
}

function Failure({ failure, times, now }) {
  const peers = `from ${failure.client}${failure.upstream ? ` to ${failure.upstream}` : ""}, ↑ ${bytes(failure.upload_bytes)}, ↓ ${bytes(failure.download_bytes)}`;
  return html`<tr>
    <td class="number">${clock(failure.time)}<span class="sub">${ago(failure.time, now)}</span></td>
    <td><b class=${`chip who-${failure.blame}`}>${failure.blame}</b></td>
    <td class="column-reason">
      <b>${failure.status}</b> <code>${failure.code ?? failure.outcome}</code>${times > 1 && html` <span class="badge">${times} times</span>`}
      <span class="sub" title=${failure.reason}>${failure.reason}</span>
    </td>
    <td class="column-request">
      <span class="what" title=${failure.target}><b>${failure.method}</b> ${failure.target}</span>
      <span class="sub">${failure.route && html`<span class="route">${failure.route}</span>`} ${peers}</span>
    </td>
    <td class="number">${seconds(failure.seconds)}${failure.seconds >= 0.1 && html`<span class="sub">mostly ${LEGS[failure.slowest_leg].text}</span>`}</td>
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
