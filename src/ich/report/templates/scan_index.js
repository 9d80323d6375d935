"use strict";
/* Sorts the table by a column: numbers from the highest, text from A, and the other way at a second press; rows without
   a value stay last. */
const table = document.getElementById("scans");
const heads = table ? [...table.tHead.rows[0].cells] : [];
heads.forEach((head, column) => {
  const button = head.querySelector("button");
  if (!button) return;
  button.onclick = () => {
    const body = table.tBodies[0], keyed = [...body.rows].map((row) => [row.cells[column].dataset.key, row]);
    const text = keyed.some(([key]) => Number.isNaN(Number(key)));
    const first = text ? "ascending" : "descending", second = text ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? second : first;
    const sign = order === "ascending" ? 1 : -1;
    const compare = text ? (a, b) => a.localeCompare(b, undefined, { numeric: true }) : (a, b) => a - b;
    keyed.sort(([a], [b]) => (a === "") - (b === "") || sign * compare(a, b));
    body.append(...keyed.map(([, row]) => row));
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
  };
});
