// Draw each chart where its id stands; what cannot be drawn says so in its place.
const charts = JSON.parse(document.getElementById("charts").textContent);
for (const [id, spec] of Object.entries(charts)) {
  vegaEmbed("#" + id, spec, { renderer: "svg", actions: false, tooltip: { theme: "custom" } }).catch((error) => {
    document.getElementById(id).textContent = "This chart cannot be drawn: " + error.message;
    console.error(error);
  });
}
