// Headings become buttons that sort: numbers from the highest, words from A, then the other way round, then as it was.
for (const table of document.querySelectorAll("table")) {
  const bodies = [...table.tBodies], heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const rows = bodies.flatMap(body => [...body.rows].map((row, place) => {
    const copy = row.cloneNode(true), group = body.querySelector("[scope=rowgroup]");
    if (group) { // rows of different groups may mix: each takes the heading of its group along
      const head = place ? copy.insertBefore(group.cloneNode(true), copy.firstChild) : copy.firstElementChild;
      head.rowSpan = 1;
      head.scope = "row";
    }
    return copy;
  }));
  if (rows.length < 2) continue;
  const mixed = document.createElement("tbody");
  heads.forEach((head, column) => {
    const words = head.classList.contains("words"), button = document.createElement("button");
    const value = row => {
      const cell = row.cells[column];
      if (words) return cell.textContent.trim();
      const said = (cell.firstChild?.nodeValue ?? "").replaceAll("−", "-").replaceAll(",", "");
      return Number(said.match(/-?\d+(\.\d+)?(e[-+]?\d+)?/)?.[0] ?? NaN);
    };
    const order = (a, b) => words ? a.localeCompare(b, "en", {numeric: true}) : a - b;
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const [first, second] = words ? ["ascending", "descending"] : ["descending", "ascending"];
      const next = {none: first, [first]: second, [second]: "none"}[head.getAttribute("aria-sort")];
      for (const other of heads) other.setAttribute("aria-sort", other === head ? next : "none");
      if (next === "none") return mixed.replaceWith(...bodies);
      const sign = next === "ascending" ? 1 : -1, keyed = rows.map(row => [value(row), row]);
      keyed.sort(([a], [b]) => Number.isNaN(a) - Number.isNaN(b) || sign * order(a, b)); // without a number: last
      mixed.append(...keyed.map(([, row]) => row));
      if (!mixed.isConnected) {
        bodies[0].before(mixed);
        bodies.forEach(body => body.remove());
      }
    });
  });
}
