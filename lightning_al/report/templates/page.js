"use strict";
// Charts are drawn when they are scrolled into view, in the colors of the page, and redrawn when those change.
(() => {
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const merge = (first, second) => {
    const merged = { ...first };
    for (const [name, value] of Object.entries(second)) {
      const nested = value && typeof value === "object" && !Array.isArray(value);
      merged[name] = nested ? merge(merged[name] || {}, value) : value;
    }
    return merged;
  };

  const layoutOf = (chart) => {
    const axis = { gridcolor: color("--line"), linecolor: color("--line"), zeroline: false, automargin: true };
    return merge(
      {
        autosize: true,
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: "system-ui, sans-serif", size: 12, color: color("--ink") },
        margin: { l: 55, r: 10, t: 10, b: 45 },
        hoverlabel: { bgcolor: color("--soft"), bordercolor: color("--line"), font: { color: color("--ink") } },
        legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
        xaxis: axis,
        yaxis: axis,
      },
      chart.layout,
    );
  };

  const draw = (element) => {
    const chart = JSON.parse(element.querySelector("script").textContent);
    Plotly.react(element.plot, chart.data, layoutOf(chart), { responsive: true, displaylogo: false, displayModeBar: false });
  };

  const charts = [...document.querySelectorAll(".chart")];
  for (const element of charts) {
    element.plot = document.createElement("div");
    element.plot.style.height = "100%";
    element.append(element.plot);
  }
  const redraw = () => charts.filter((element) => element.plot.data).forEach(draw);
  const observer = new IntersectionObserver(
    (entries) => {
      for (const entry of entries.filter((candidate) => candidate.isIntersecting)) {
        observer.unobserve(entry.target);
        draw(entry.target);
      }
    },
    { rootMargin: "400px" },
  );
  charts.forEach((element) => observer.observe(element));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  // A closed run and its charts are not printed.
  matchMedia("print").addEventListener("change", () => {
    charts.filter((element) => element.offsetParent).forEach(draw);
    charts.filter((element) => element.plot.data).forEach((element) => Plotly.Plots.resize(element.plot));
  });

  const keyOf = (row, column) => {
    const text = row.cells[column].dataset.key;
    const number = Number(text === "inf" ? Infinity : text);
    return Number.isNaN(number) ? text : number;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const ascending = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        const rows = [...table.tBodies[0].rows];
        rows.sort((one, other) => {
          const [a, b] = [keyOf(one, column), keyOf(other, column)];
          return (ascending ? 1 : -1) * (typeof a === "number" && typeof b === "number" ? a - b || 0 : String(a).localeCompare(String(b)));
        });
        table.tBodies[0].append(...rows);
      });
    });
  }
})();
