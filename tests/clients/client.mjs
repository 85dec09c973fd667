// The clients of a Node program: fetch on plain HTTP, and node:https, HTTP/2 preferred, with a
// certificate, which fetch cannot present. See __init__.py for what is given and what is written.

import { readFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";
import { once } from "node:events";
import { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";

const [url, folder] = process.argv.slice(2);

function write(step, status, version, body) {
  console.log(`${step} ${status} ${version} ${Buffer.from(body).toString("base64")}`);
}

async function* slow() {
  for (let piece = 0; piece < 30; piece += 1) {
    await sleep(60);
    yield Buffer.alloc(50_000);
  }
}

async function streamed(chunks) {
  let text = "";
  for await (const chunk of chunks) {
    text += Buffer.from(chunk).toString();
    const lines = text.split("\n");
    text = lines.pop();
    for (const line of lines.filter((line) => line.startsWith("data: "))) {
      write("token", 0, "-", line.slice("data: ".length));
    }
  }
}

async function withFetch() {
  const body = Buffer.alloc(100_000);
  const say = async (step, response) =>
    write(step, response.status, "-", await response.text());
  await say("get", await fetch(`${url}/get?x=1`));
  await say("post", await fetch(`${url}/post`, { method: "POST", body }));
  await streamed((await fetch(`${url}/stream`, { method: "POST", body: "{}" })).body);
  const upload = { method: "POST", body: Readable.toWeb(Readable.from(slow())), duplex: "half" };
  await say("upload", await fetch(`${url}/upload`, upload));
}

async function withAgent() {
  const agent = new https.Agent({
    keepAlive: true,
    maxSockets: 1,
    ALPNProtocols: ["h2", "http/1.1"],
    cert: readFileSync(`${folder}/cert.pem`),
    key: readFileSync(`${folder}/key.pem`),
    ca: readFileSync(`${folder}/ca.pem`),
  });
  const send = async (path, method, body, headers = {}) => {
    const request = https.request(url + path, { agent, method, headers });
    if (headers.Expect) {
      request.flushHeaders();
      await once(request, "continue");
    }
    Readable.from(body).pipe(request);
    return (await once(request, "response"))[0];
  };
  const say = async (step, response) => {
    const body = Buffer.concat(await response.toArray());
    write(step, response.statusCode, `HTTP/${response.httpVersion}`, body);
  };
  const body = Buffer.alloc(100_000);
  const length = { "Content-Length": body.length };
  await say("get", await send("/get?x=1", "GET", []));
  await say("post", await send("/post", "POST", [body], length));
  await streamed(await send("/stream", "POST", ["{}"]));
  await say("expect", await send("/expect", "POST", [body], { ...length, Expect: "100-continue" }));
  await say("upload", await send("/upload", "POST", slow()));
  agent.destroy();
}

console.log(`version Node ${process.version.slice(1)} (undici ${process.versions.undici})`);
await (folder ? withAgent() : withFetch());
