// The form of plain.html. The two elements work without a script.
const form = document.querySelector("form");
const answer = document.querySelector("#answer");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { wattfare } = document.querySelector("wattfare-button");
  const response = await wattfare.fetch("/api/wattfare/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({
      model: "wattfare/echo",
      messages: [{ role: "user", content: form.elements.question.value }],
    }),
  });
  const body = await response.json();
  answer.textContent = response.ok ? body.choices[0].message.content : body.error.message;
});
