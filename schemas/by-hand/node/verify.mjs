// Checks every DSSE envelope of a bundle with @sigstore/verify, the library behind `npm audit signatures`, and nothing of
// Expunge: each statement is signed by a key that your policy file pins for the only role that may make it.
//
//   node verify.mjs BUNDLE-DIRECTORY POLICY.json
import { createHash, createPublicKey } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";

import { bundleFromJSON } from "@sigstore/bundle";
import { Verifier, toSignedEntity } from "@sigstore/verify";

const ROLES = {
  "urn:expunge:scope:v1": "scope",
  "urn:expunge:scope-approved:v1": "scope",
  "urn:expunge:scope-void:v1": "scope",
  "urn:expunge:scope-unwitnessed:v1": "scope",
  "urn:expunge:registered:v1": "register",
  "urn:expunge:reconciliation:v1": "rescanner",
  "urn:expunge:completion:v1": "certifier",
  "urn:expunge:overdue:v1": "certifier",
  "urn:expunge:key-destroyed:v1": "certifier",
  "urn:expunge:key-event:v1": "certifier",
  "urn:expunge:model-tainted:v1": "retrainer",
  "urn:expunge:metric-void:v1": "retrainer",
  "urn:expunge:model-replaced:v1": "retrainer",
  "urn:expunge:model-destroyed:v1": "retrainer",
};
const SPKI = Buffer.from("302a300506032b6570032100", "hex"); // RFC 8410: an Ed25519 public key follows

const [directory, policy] = process.argv.slice(2);
const keys = new Map();
for (const one of JSON.parse(readFileSync(policy)).keys) {
  const raw = Buffer.from(one.public, "base64");
  const publicKey = createPublicKey({ key: Buffer.concat([SPKI, raw]), format: "der", type: "spki" });
  keys.set(createHash("sha256").update(raw).digest("hex"), { ...one, publicKey });
}
const trustMaterial = {
  certificateAuthorities: [],
  timestampAuthorities: [],
  tlogs: [],
  ctlogs: [],
  publicKey: (hint) => {
    if (!keys.has(hint)) throw new Error(`no key ${hint} in the policy`);
    return { publicKey: keys.get(hint).publicKey, validFor: () => true };
  },
};
// No Rekor, no Fulcio, no time of theirs: the keys are yours.
const verifier = new Verifier(trustMaterial, { tlogThreshold: 0, ctlogThreshold: 0, tsaThreshold: 0 });

function check({ envelope, index }) {
  const hint = envelope.signatures[0].keyid;
  const bundle = bundleFromJSON({
    mediaType: "application/vnd.dev.sigstore.bundle.v0.3+json",
    verificationMaterial: { publicKey: { hint } },
    dsseEnvelope: envelope,
  });
  verifier.verify(toSignedEntity(bundle));
  const { predicateType, predicate } = JSON.parse(Buffer.from(envelope.payload, "base64"));
  const looks = ["presence", "absence"].includes(predicate.step);
  const role = predicateType === "urn:expunge:chunk:v1" ? (looks ? "rescanner" : "executor") : ROLES[predicateType];
  const key = keys.get(hint);
  if (key.role !== role) throw new Error(`statement ${index}: expected a ${role} key, got one of role ${key.role}`);
  if (role === "executor" && key.store !== predicate.store) throw new Error(`statement ${index}: another store's key`);
}

const lines = readFileSync(join(directory, "sweep", "statements.jsonl"), "utf8").split("\n").slice(0, -1);
lines.map((line) => JSON.parse(line)).forEach(check);
if (!lines.length) throw new Error("expected statements, one per line");
console.log(`${lines.length} statements are signed under their roles`);
