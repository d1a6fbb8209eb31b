// The transfers under way: sorted, filtered, in pages, with a button to cancel each.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { ask } from "./connection.js";
import { ACCOUNTS, LEGS, bytes, count, rate, seconds, shares } from "./format.js";

const PAGE = 15;
const COLUMNS = [
  { id: "target", text: "Transfer", value: (row) => `${row.route ?? ""} ${row.target}` },
  { id: "progress", text: "Progress", value: (row) => (row.length ? row.bytes / row.length : -1) },
  { id: "rate", text: "Rate", value: (row) => row.bytes_per_second },
  { id: "age", text: "Age", value: (row) => row.seconds },
  { id: "eta", text: "Left", value: (row) => row.eta_seconds ?? Infinity },
  { id: "waiting", text: "Waits for", value: (row) => row.waiting_seconds },
  { id: "shares", text: "Time so far", value: (row) => row.wait_seconds.upstream_response ?? 0 },
];

export function Transfers({ rows, total, problems, route }) {
  const [sort, setSort] = useState({ id: "age", isDown: true });
  const [page, setPage] = useState(0);
  const [asking, setAsking] = useState(null);
  const shown = rows.filter((row) => route === null || (row.route ?? "") === route);
  const column = COLUMNS.find((each) => each.id === sort.id);
  shown.sort((one, other) => compare(column.value(one), column.value(other)) * (sort.isDown ? -1 : 1));
  const pages = Math.max(1, Math.ceil(shown.length / PAGE));
  const current = Math.min(page, pages - 1);
  const first = current * PAGE;
  const marked = new Set(problems.flatMap((problem) => problem.transfers));
  const sortBy = (id) => setSort({ id, isDown: sort.id === id ? !sort.isDown : true });
  return html`<section class="card" aria-labelledby="transfers-title">
    <div class="title">
      <h2 id="transfers-title">Transfers under way <span class="badge" id="transfer-count">${total}</span></h2>
      <ul class="legend" aria-label="Colors of the time so far">
        ${ACCOUNTS.map((who) => html`<li key=${who}><i class=${`swatch who-${who}`}></i>${who}</li>`)}
      </ul>
    </div>
    ${shown.length === 0
      ? html`<p class="empty">${route === null ? "Nothing is under way." : "Nothing is under way on this route."}</p>`
      : html`<div class="scroll" tabindex="0" role="region" aria-label="Table of transfers">
          <table class="transfers">
            <thead>
              <tr>
                ${COLUMNS.map((each) => html`<${Head} key=${each.id} column=${each} sort=${sort} onSort=${sortBy} />`)}
                <th scope="col"><span class="hidden">Cancel</span></th>
              </tr>
            </thead>
            <tbody>
              ${shown.slice(first, first + PAGE).map((row) => html`<${Row} key=${row.id} row=${row} isMarked=${marked.has(row.id)} onCancel=${setAsking} />`)}
            </tbody>
          </table>
        </div>`}
    ${pages > 1 &&
    html`<nav class="pages" aria-label="Pages of transfers">
      <button disabled=${current === 0} onClick=${() => setPage(current - 1)}>Previous</button>
      <span>${first + 1}–${Math.min(first + PAGE, shown.length)} of ${shown.length.toLocaleString("en")}</span>
      <button disabled=${current === pages - 1} onClick=${() => setPage(current + 1)}>Next</button>
    </nav>`}
    ${asking && html`<${Confirm} row=${asking} onClose=${() => setAsking(null)} />`}
  </section>`;
}

function compare(one, other) {
  if (one === other) return 0;
  return one < other ? -1 : 1;
}

function Head({ column, sort, onSort }) {
  const isSorted = sort.id === column.id;
  const direction = sort.isDown ? "descending" : "ascending";
  return html`<th scope="col" aria-sort=${isSorted ? direction : "none"} class=${`column-${column.id}`}>
    <button class="sort" onClick=${() => onSort(column.id)}>
      ${column.text}<span class="arrow" aria-hidden="true">${isSorted ? (sort.isDown ? "↓" : "↑") : ""}</span>
    </button>
  </th>`;
}

function Row({ row, isMarked, onCancel }) {
  const isUp = row.direction === "upload";
  const wait = LEGS[row.waiting_on];
  // Between two chunks a body waits all the time; nothing moves while a step of the request is waited for.
  const isBetween = ["queue", "connect", "upstream_response"].includes(row.waiting_on);
  const isStill = isBetween || row.waiting_seconds >= 1;
  return html`<tr class=${isMarked ? "marked" : ""} data-id=${row.id} data-request=${row.request_id}>
    <th scope="row" class="column-target">
      <span class="what" title=${`${row.method} ${row.target}`}><b>${row.method}</b> ${row.target}</span>
      <span class="sub">
        ${row.route && html`<span class="route">${row.route}</span>`} from ${row.client}
        ${row.endpoint && html` to ${row.endpoint.replace(/^https?:\/\//, "")}`}
      </span>
    </th>
    <td class="column-progress"><${Progress} row=${row} isUp=${isUp} /></td>
    <td class="column-rate number">${isBetween ? "–" : html`${rate(row.bytes_per_second)}<span class="sub">mean ${rate(row.average_bytes_per_second)}</span>`}</td>
    <td class="column-age number">${seconds(row.seconds)}</td>
    <td class="column-eta number">${seconds(row.eta_seconds)}</td>
    <td class="column-waiting">
      <span class=${isStill || isMarked ? `chip who-${wait.who}` : ""}>${wait.text}</span>
      <span class="sub">${isStill ? seconds(row.waiting_seconds) : isMarked ? "slow" : "moving"}</span>
    </td>
    <td class="column-shares"><${Shares} waits=${row.wait_seconds} /></td>
    <td class="column-cancel"><button class="cancel" onClick=${() => onCancel(row)} aria-label=${`Cancel ${row.method} ${row.target}`}>Cancel</button></td>
  </tr>`;
}

function Progress({ row, isUp }) {
  const isKnown = row.length !== null && row.length > 0;
  const percent = isKnown ? Math.min(100, (100 * row.bytes) / row.length) : 0;
  const text = isKnown ? `${bytes(row.bytes)} of ${bytes(row.length)}` : bytes(row.bytes);
  const isEmpty = row.length === 0;
  const label = `${isUp ? "Upload" : "Download"}, ${text}`;
  return html`<div class="progress">
    <span class="direction" aria-hidden="true">${isUp ? "↑" : "↓"}</span>
    ${isEmpty
      ? html`<span class="sub">no body</span>`
      : html`<div class=${isKnown ? "bar" : "bar moving"} role="progressbar" aria-label=${label} aria-valuemin="0" aria-valuemax="100"
            aria-valuenow=${isKnown ? Math.floor(percent) : undefined}>
            <i style=${{ width: isKnown ? `${percent}%` : "100%" }}></i>
          </div>
          <span class="percent number">${isKnown ? `${Math.floor(percent)} %` : ""}</span>
          <span class="sub size">${text}${row.parts ? `, ${count(row.parts, "part")} done` : ""}</span>`}
  </div>`;
}

function Shares({ waits }) {
  const parts = shares(waits);
  const text = parts.map((each) => `${each.who} ${Math.round(100 * each.share)} % (${seconds(each.seconds)})`).join(", ");
  const most = parts.reduce((best, each) => (each.share > best.share ? each : best), { who: "", share: 0 });
  return html`<div class="shares" role="img" aria-label=${`Time so far: ${text}`} title=${text}>
      ${parts.map((each) => html`<i key=${each.who} class=${`who-${each.who}`} style=${{ flexGrow: each.share }}></i>`)}
    </div>
    <span class="sub">${most.who && `${most.who} ${Math.round(100 * most.share)} %`}</span>`;
}

function Confirm({ row, onClose }) {
  const dialog = useRef(null);
  const [error, setError] = useState(null);
  useEffect(() => dialog.current.showModal(), []);
  async function cancel() {
    try {
      const response = await ask(`transfers/${row.id}`, { method: "DELETE" });
      if (response.ok || response.status === 404) return onClose();
      setError(`It was not cancelled: status ${response.status}.`);
    } catch (failure) {
      setError(`It was not cancelled: ${failure.message || "the token is missing"}.`);
    }
  }
  const size = row.length ? `${bytes(row.bytes)} of ${bytes(row.length)}` : bytes(row.bytes);
  return html`<dialog ref=${dialog} onClose=${onClose} aria-labelledby="confirm-title">
    <h2 id="confirm-title">Cancel this ${row.direction}?</h2>
    <p><b>${row.method}</b> <span class="mono">${row.target}</span></p>
    <p>From ${row.client}${row.route ? ` on ${row.route}` : ""}, ${size} so far, request ID <span class="mono">${row.request_id}</span>.</p>
    <p>Both sides are cut at once. The client can send the request again.</p>
    ${error && html`<p role="alert" class="bad">${error}</p>`}
    <div class="buttons">
      <button autofocus onClick=${onClose}>Keep it</button>
      <button class="danger" onClick=${cancel}>Cancel the ${row.direction}</button>
    </div>
  </dialog>`;
}
