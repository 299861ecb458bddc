"""The Python package walrus-python against the local Walrus: scripts/foreign-test.sh starts both.

PUBLISHER and AGGREGATOR are base URLs of one network of 100 shards, where blob IDs are cheap; REAL is
that of one of 1000, as the real ones have. Nothing here knows the local Walrus but for the /admin
requests, which bring about what the real network cannot do on demand.
"""

import io
import json
import math
import os
import tempfile
import unittest
import urllib.request

from walrus import WalrusAPIError, WalrusClient

PUBLISHER = os.environ["PUBLISHER"]
AGGREGATOR = os.environ["AGGREGATOR"]
REAL = os.environ["REAL"]
NEVER_STORED = "A" * 43


def admin(method, path, body=None):
    request = urllib.request.Request(
        PUBLISHER + "/admin/" + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read() or b"null")


def encoded_length(size, shards=100):
    """What a blob becomes on a network of so many shards."""
    faulty = (shards - 1) // 3
    primary, secondary = shards - 2 * faulty, shards - faulty
    symbol = max(2, math.ceil(size / (primary * secondary)))
    symbol += symbol % 2
    return shards * (64 * shards + 32) + shards * (primary + secondary) * symbol


class WalrusPython(unittest.TestCase):
    def setUp(self):
        admin("POST", "reset")
        self.client = WalrusClient(PUBLISHER + "/", AGGREGATOR + "/", timeout=60)

    def fault(self, op, **action):
        admin("PUT", "faults", {"rules": [{"match": {"op": [op]}, "action": action}]})

    def fails(self, code, call, *args, **kwargs):
        with self.assertRaises(WalrusAPIError) as caught:
            call(*args, **kwargs)
        self.assertEqual(caught.exception.code, code, caught.exception)
        return caught.exception

    def put(self, data, **kwargs):
        return self.client.put_blob(data, **kwargs)["newlyCreated"]["blobObject"]["blobId"]

    def test_what_a_store_answers(self):
        # An example of the Walrus documentation, with the blob ID that the real network gave.
        client = WalrusClient(REAL, REAL, timeout=60)
        answer = client.put_blob(b"some other string", epochs=5, encoding_type="RS2")
        self.assertEqual(list(answer), ["newlyCreated"])
        created = answer["newlyCreated"]
        blob = created["blobObject"]
        self.assertEqual(blob["blobId"], "M4hsZGQ1oCktdzegB6HnI6Mi28S2nqOPHxK-W7_4BUk")
        self.assertEqual(blob["size"], 17)
        self.assertEqual(blob["encodingType"], "RS2")
        self.assertIsNone(blob["certifiedEpoch"])
        self.assertIs(blob["deletable"], True)
        self.assertRegex(blob["id"], "^0x[0-9a-f]{64}$")
        self.assertRegex(blob["storage"]["id"], "^0x[0-9a-f]{64}$")
        self.assertNotEqual(blob["id"], blob["storage"]["id"])
        storage = blob["storage"]
        self.assertEqual(storage["startEpoch"], blob["registeredEpoch"])
        self.assertEqual(storage["endEpoch"] - storage["startEpoch"], 5)
        self.assertEqual(storage["storageSize"], encoded_length(17, shards=1000))
        self.assertEqual(
            created["resourceOperation"],
            {"registerFromScratch": {"encodedLength": encoded_length(17, shards=1000), "epochsAhead": 5}},
        )
        self.assertIsInstance(created["cost"], int)
        self.assertGreater(created["cost"], 0)

    def test_what_is_stored_comes_back(self):
        for size in [0, 1, 1000, 262_144, 10 << 20]:
            with self.subTest(size=size):
                data = os.urandom(size)
                blob = self.client.put_blob(data)["newlyCreated"]["blobObject"]
                self.assertEqual(blob["size"], size)
                self.assertEqual(blob["storage"]["storageSize"], encoded_length(size))
                self.assertEqual(self.client.get_blob(blob["blobId"]), data)
                self.assertEqual(self.client.get_blob_by_object_id(blob["id"]), data)
                with self.client.get_blob_as_stream(blob["blobId"]) as stream:
                    self.assertEqual(stream.read(), data)
                with tempfile.TemporaryDirectory() as directory:
                    path = os.path.join(directory, "blob")
                    self.client.get_blob_as_file(blob["blobId"], path)
                    with open(path, "rb") as file:
                        self.assertEqual(file.read(), data)

    def test_stored_from_files_and_streams(self):
        data = os.urandom(300_000)
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            from_file = self.client.put_blob_from_file(file.name)
        from_stream = self.client.put_blob_from_stream(io.BytesIO(data))

        class Unsized(io.RawIOBase):
            """A stream of unknown length: the client sends it in chunks."""

            left = io.BytesIO(data)

            def readable(self):
                return True

            def readinto(self, buffer):
                return self.left.readinto(buffer)

        chunked = self.client.put_blob_from_stream(io.BufferedReader(Unsized()))
        blobs = [a["newlyCreated"]["blobObject"] for a in (from_file, from_stream, chunked)]
        self.assertEqual(len({b["blobId"] for b in blobs}), 1)
        # Deletable blobs are made, and paid, each time.
        self.assertEqual(len({b["id"] for b in blobs}), 3)
        self.assertEqual(self.client.get_blob(blobs[0]["blobId"]), data)

    def test_parameters(self):
        # Since 1.33 `deletable=false` has no effect; the client has no word for `permanent`.
        for deletable in [None, True, False]:
            blob = self.client.put_blob(b"x", deletable=deletable)["newlyCreated"]["blobObject"]
            self.assertIs(blob["deletable"], True)
            self.assertEqual(blob["storage"]["endEpoch"] - blob["storage"]["startEpoch"], 1)
        # An address that is none is ignored without a word.
        for address in ["0x" + "ab" * 32, "nobody"]:
            self.assertIn("newlyCreated", self.client.put_blob(b"x", send_object_to=address))
        error = self.fails(400, self.client.put_blob, b"x", encoding_type="RedStuffRaptorQ")
        self.assertEqual(error.status, "Bad Request", "a text, not the JSON envelope")
        self.fails(400, self.client.put_blob, b"x", epochs="many")
        # Not the publisher's to check: it fails on chain.
        for epochs in [0, 54]:
            error = self.fails(500, self.client.put_blob, b"x", epochs=epochs)
            self.assertEqual(error.status, "INTERNAL")

    def test_metadata(self):
        blob_id = self.put(b"seventeen letters")
        headers = {k.lower(): v for k, v in self.client.get_blob_metadata(blob_id).items()}
        self.assertEqual(headers["content-length"], "17")
        self.assertEqual(headers["etag"], blob_id, "without quotes")
        self.assertEqual(headers["access-control-allow-origin"], "*")
        self.assertIn("max-age=86400", headers["cache-control"])
        self.assertNotIn("content-type", headers)
        self.assertNotIn("accept-ranges", headers)

    def test_what_is_not_there(self):
        for call in [self.client.get_blob, self.client.get_blob_as_stream]:
            error = self.fails(404, call, NEVER_STORED)
            self.assertEqual(error.status, "NOT_FOUND")
            self.assertEqual(error.details[0]["reason"], "BLOB_NOT_FOUND")
            self.assertEqual(error.details[0]["domain"], "daemon.walrus.space")
        error = self.fails(404, self.client.get_blob_by_object_id, "0x" + "cd" * 32)
        self.assertEqual(error.details[0]["reason"], "BLOB_NOT_FOUND")
        # An answer to HEAD has no body to say why.
        error = self.fails(404, self.client.get_blob_metadata, NEVER_STORED)
        self.assertEqual((error.status, error.details), ("Not Found", []))
        for not_an_id in ["short", "A" * 44, NEVER_STORED + "="]:
            error = self.fails(400, self.client.get_blob, not_an_id)
            self.assertEqual(error.status, "Bad Request")
        # Each role serves its own paths only.
        swapped = WalrusClient(AGGREGATOR, PUBLISHER, timeout=60)
        self.fails(404, swapped.put_blob, b"x")
        self.fails(404, swapped.get_blob, NEVER_STORED)

    def test_a_blob_ends_with_its_epochs(self):
        blob_id = self.put(b"short-lived", epochs=2)
        admin("POST", "epoch/advance?by=1")
        self.assertEqual(self.client.get_blob(blob_id), b"short-lived")
        admin("POST", "epoch/advance?by=1")
        error = self.fails(404, self.client.get_blob, blob_id)
        self.assertEqual(error.details[0]["reason"], "BLOB_NOT_FOUND")

    def test_too_large(self):
        error = self.fails(413, self.client.put_blob, bytes((10 << 20) + 1))
        self.assertEqual(error.status, "Payload Too Large")

    def test_troubles(self):
        blob_id = self.put(b"in trouble")
        for action, code, status, reason in [
            ({"type": "internal"}, 500, "INTERNAL", "INTERNAL_ERROR"),
            ({"type": "unavailable"}, 503, "UNAVAILABLE", "BLOB_UNAVAILABLE"),
            ({"type": "overloaded"}, 429, "Too Many Requests", None),
            ({"type": "bad_gateway"}, 502, "Bad Gateway", None),
        ]:
            with self.subTest(action=action):
                self.fault("get", **action)
                error = self.fails(code, self.client.get_blob, blob_id)
                self.assertEqual(error.status, status)
                self.assertEqual(error.details[0]["reason"] if error.details else None, reason)
        self.fault("put", type="unconfirmed")
        error = self.fails(504, self.client.put_blob, b"unconfirmed")
        self.assertEqual(error.details[0]["reason"], "INSUFFICIENT_CONFIRMATIONS")
        # A body that ends too early is noticed through content-length; the client calls it a 500.
        self.fault("get", type="cut_body", after=4)
        error = self.fails(500, self.client.get_blob, blob_id)
        self.assertEqual(error.status, "REQUEST_FAILED")

    def test_a_failure_in_a_200(self):
        # The client takes it for a success and hands it on as it is.
        self.fault("put", type="error_result", message="no luck")
        answer = self.client.put_blob(b"x")
        self.assertEqual(list(answer), ["error"])
        self.assertIn("no luck", answer["error"]["errorMsg"])
        self.assertIn("failurePhase", answer["error"])


if __name__ == "__main__":
    unittest.main()
