// Publishes to Expunge as schemas/README.md says, with an ordinary Kafka client and Node's own crypto.
//
//   node publish.mjs BOOTSTRAP AUDIENCE KEY_FILE < messages.jsonl
//
// KEY_FILE: the 32-byte seed of an Ed25519 key in hex, one line.
// Each line of the input: {"mode": "binary" | "structured", "topic", "key", "data"}. `data` is a lineage event, or a request
// without id, nonce, audience, issued_at and expires_at, which are drawn here. Prints {"id", "topic", "partition"} per line.
import { createHash, createPrivateKey, createPublicKey, randomBytes, randomUUID, sign } from "node:crypto";
import { readFileSync } from "node:fs";
import { compatibilityPartitioner, Producer } from "@platformatic/kafka";

const ENVELOPE = "application/vnd.dsse.envelope.v1+json";
const PAYLOAD = "application/vnd.expunge.request+json";
const DAY_MS = 24 * 3600 * 1000;

const [bootstrap, audience, keyFile] = process.argv.slice(2);
const seed = readFileSync(keyFile, "utf8").trim();
// RFC 8410: an Ed25519 private key is this prefix and the seed.
const key = createPrivateKey({
  key: Buffer.concat([Buffer.from("302e020100300506032b657004220420", "hex"), Buffer.from(seed, "hex")]),
  format: "der",
  type: "pkcs8",
});
const raw = createPublicKey(key).export({ format: "der", type: "spki" }).subarray(-32);
const keyid = createHash("sha256").update(raw).digest("hex");

function signed(request) {
  const payload = Buffer.from(JSON.stringify(request));
  const pae = Buffer.concat([Buffer.from(`DSSEv1 ${PAYLOAD.length} ${PAYLOAD} ${payload.length} `), payload]);
  const sig = sign(null, pae, key).toString("base64");
  return { payload: payload.toString("base64"), payloadType: PAYLOAD, signatures: [{ keyid, sig }] };
}

function drawn(data) {
  const now = new Date();
  const received = "regulation" in data ? { received_at: now.toISOString() } : {};
  return {
    ...data, ...received, id: randomUUID(), nonce: randomBytes(16).toString("hex"), audience,
    issued_at: now.toISOString(), expires_at: new Date(now.getTime() + DAY_MS).toISOString(),
  };
}

function message({ mode, topic, key: partitionkey, data }) {
  const isRequest = topic === "expunge.requests";
  const request = isRequest ? drawn(data) : undefined;
  const id = isRequest ? request.id : randomUUID();
  const body = isRequest ? signed(request) : data;
  const contentType = isRequest ? ENVELOPE : "application/json";
  const attributes = { specversion: "1.0", id, source: "urn:expunge:publisher:node", type: data.type, partitionkey };
  if (mode === "structured") {
    const value = JSON.stringify({ ...attributes, datacontenttype: contentType, data: body });
    return { id, record: { topic, key: partitionkey, value, headers: { "content-type": "application/cloudevents+json" } } };
  }
  const named = Object.entries(attributes).map(([name, value]) => [`ce_${name}`, value]);
  const headers = { ...Object.fromEntries(named), "content-type": contentType };
  return { id, record: { topic, key: partitionkey, value: JSON.stringify(body), headers } };
}

const producer = new Producer({
  clientId: "node-publisher",
  bootstrapBrokers: bootstrap.split(","),
  partitioner: compatibilityPartitioner,
  idempotent: true,
  acks: -1,
  autocreateTopics: false,
  serializers: Object.fromEntries(["key", "value", "headerKey", "headerValue"].map((one) => [one, (text) => Buffer.from(text)])),
});
try {
  for (const line of readFileSync(0, "utf8").split("\n").filter(Boolean)) {
    const { id, record } = message(JSON.parse(line));
    const { offsets } = await producer.send({ messages: [record] });
    console.log(JSON.stringify({ id, topic: record.topic, partition: offsets[0].partition }));
  }
} finally {
  await producer.close();
}
