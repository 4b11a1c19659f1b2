// Sorting of tables: a press on a head sorts ascending, then descending, then back to the order of the report.
// Cells sort by the number behind them (data-n) where they have one; what has none comes last.
"use strict";

function keyOf(row, column) {
  const cell = row.cells[column];
  const number = cell.dataset.n;
  return { number: number === undefined ? null : Number(number), text: cell.textContent.trim() };
}

function compareKeys(a, b, direction) {
  if (a.number !== null && b.number !== null) return direction * (a.number - b.number);
  if (a.number !== null) return -1;
  if (b.number !== null) return 1;
  return direction * a.text.localeCompare(b.text, "en", { numeric: true });
}

function sortBy(table, column, direction) {
  const body = table.tBodies[0];
  const keyed = table.original.map((row, place) => ({ row, place, key: keyOf(row, column) }));
  if (direction !== 0) keyed.sort((a, b) => compareKeys(a.key, b.key, direction) || a.place - b.place);
  body.replaceChildren(...keyed.map((entry) => entry.row));
  table.classList.toggle("sorted", direction !== 0);
}

function makeSortable(table) {
  table.original = [...table.tBodies[0].rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (head.textContent.trim() === "") return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = { ascending: "descending", descending: "" }[head.getAttribute("aria-sort")] ?? "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (next) head.setAttribute("aria-sort", next);
      sortBy(table, column, { ascending: 1, descending: -1 }[next] ?? 0);
    });
  });
}

for (const table of document.querySelectorAll("table")) {
  if (table.tBodies[0].rows.length > 1) makeSortable(table);
}
window.addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll(".tabular > details")) fold.open = true;
});
