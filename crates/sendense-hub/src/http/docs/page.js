// Fetches the OpenAPI document with the reader's token and shows it. The token lives in this page's memory only.
"use strict";

const form = document.getElementById("token-form");
const message = document.getElementById("message");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const token = document.getElementById("token").value.trim();
  const authorization = `Bearer ${token}`;
  message.textContent = "…";
  try {
    const response = await fetch("/api/v1/openapi.json", { headers: { authorization } });
    const body = await response.json();
    if (!response.ok) {
      message.textContent = body.details ? `${body.error}: ${body.details}` : body.error;
      return;
    }
    message.textContent = "";
    SwaggerUIBundle({
      spec: body,
      domNode: document.getElementById("viewer"),
      deepLinking: true,
      requestInterceptor: (request) => {
        request.headers.authorization = authorization;
        return request;
      },
    });
  } catch (error) {
    message.textContent = `the hub cannot be reached: ${error.message}`;
  }
});

// Whoever is quicker than the viewer, a large script, finds the button asleep and not a form that nobody listens to.
form.querySelector("button").disabled = false;
