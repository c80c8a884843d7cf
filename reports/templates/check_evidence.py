#!/usr/bin/env python3
"""Check the evidence of one forget request. Needs Python and the package `cryptography`, and nothing else.

    python check_evidence.py --key PUBLIC_KEY.pem [FOLDER]

The public key has to come to you by another way than this folder. What is checked:
    1. every file is the one that evidence.json lists, and none is missing or added
    2. certificate.dsse.json is signed by the key (DSSE v1, Ed25519) and has not expired
    3. report.json is the report that the certificate names, and says the same verdict and findings
    4. ledger.jsonl is one chain: entry n holds the hash of entry n - 1; the entries about this request have the hash of
       what they say; and the chain contains the entry that the certificate names as the last when it was issued
    5. erasure.json, where the examples were erased, is the journal that the certificate names, and every item of it is
       done, or named as open
Exit 0: all of it holds. 1: something does not. 2: it could not be checked.
"""

import argparse
import base64
import hashlib
import json
import sys
from datetime import datetime, timezone
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_public_key

TYPE, PREDICATE = "application/vnd.in-toto+json", "urn:palimpsest:unlearning-certificate:v1"
GENESIS = "0" * 64
problems = []


def check(holds, said, but):
    """Print what holds; note what does not."""
    if holds:
        print("ok  " + said)
    else:
        problems.append(but)
        print("BAD " + but)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files(folder):
    listed = json.loads((folder / "evidence.json").read_text("utf-8"))["files"]
    there = {p.name for p in folder.iterdir()} - {"evidence.json", "__pycache__"}
    wrong = sorted(name for name in listed if name not in there or sha256(folder / name) != listed[name])
    check(not wrong, f"{len(listed)} files are as they are listed", "changed or missing: " + ", ".join(wrong))
    check(there <= set(listed), "no other file is here", "not listed: " + ", ".join(sorted(there - set(listed))))


def certificate(folder, key):
    envelope = json.loads((folder / "certificate.dsse.json").read_text("utf-8"))
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"]
    signed = b"DSSEv1 %d %s %d %s" % (len(kind.encode()), kind.encode(), len(payload), payload)
    good = False
    for signature in envelope["signatures"]:
        try:
            key.verify(base64.b64decode(signature["sig"]), signed)
            good = True
        except InvalidSignature:
            pass
    check(good and kind == TYPE, "the certificate is signed by this key", "the certificate is not signed by this key")
    said = json.loads(payload)
    check(said["predicateType"] == PREDICATE, "it is an unlearning certificate", "it states something else")
    one, now = said["predicate"], datetime.now(timezone.utc)
    issued, expires = (datetime.fromisoformat(one[name]) for name in ("issued_at", "expires_at"))
    check(issued <= now < expires, f"it is good until {expires.date()}", f"it was good from {issued} to {expires}")
    return one


def report(folder, one):
    named, path = one["digests"]["report"], folder / "report.json"
    check(sha256(path) == named, "the report is the one that it names", "the report is not the one that it names")
    told = json.loads(path.read_text("utf-8"))
    judged = sorted((f["what"], f["verdict"], f["sentence"]) for f in told["findings"] if f["judged"])
    signed = sorted((f["what"], f["verdict"], f["sentence"]) for f in one["findings"] if f["what"] != "power")
    same = told["verdict"] == one["verdict"] and judged == signed
    check(same, f"both say {one['verdict']}, by the same {len(signed)} findings", "report and certificate differ")


def ledger(folder, head):
    before, whole, told, heads = GENESIS, True, 0, set()
    for number, line in enumerate((folder / "ledger.jsonl").read_text("utf-8").splitlines(), 1):
        entry = json.loads(line)
        whole &= entry["seq"] == number and entry["prev_hash"] == before
        if "body" in entry:  # the canonical text, as it was hashed
            kind = json.dumps(entry["kind"], ensure_ascii=False)
            text = f'{{"body":{entry["body"]},"kind":{kind},"prev_hash":"{before}","seq":{number}}}'
            whole &= hashlib.sha256(text.encode("utf-8")).hexdigest() == entry["hash"]
            told += 1
        before = entry["hash"]
        heads.add(f"{number}:{before}")
    check(
        whole and told > 0, f"the ledger is one chain, {told} entries of it about this request", "the ledger is broken"
    )
    check(head in heads, "it contains the entry that the certificate names", f"it does not contain {head}")


def erasure(folder, one):
    named = one["digests"].get("erasure")
    if named is None:
        print("    the certificate says nothing of an erasure")
        return
    check(
        sha256(folder / "erasure.json") == named, "the erasure is the one that it names", "the erasure is another one"
    )
    items = json.loads((folder / "erasure.json").read_text("utf-8"))
    done = sum(item["state"] == "done" and bool(item["proof"]) for item in items)
    left = sum(item["state"] == "open" for item in items)
    check(done + left == len(items), f"{done} items are erased, {left} are left to a person", "an item was not done")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--key", type=Path, required=True, help="the public key, which came by another way")
    asked = parser.parse_args()
    try:
        one = certificate(asked.folder, load_pem_public_key(asked.key.read_bytes()))
        files(asked.folder)
        report(asked.folder, one)
        ledger(asked.folder, one["ledger_head"])
        erasure(asked.folder, one)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"It could not be checked: {type(error).__name__}: {error}")
        return 2
    print(f"Request {one['request_id']} of {one['subject']}: {one['verdict']}, removed by {one['method']}")
    print("THE EVIDENCE HOLDS" if not problems else f"THE EVIDENCE DOES NOT HOLD: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
