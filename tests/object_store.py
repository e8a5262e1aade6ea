"""A local object store that speaks the JSON API of Google Cloud Storage, as far as its clients here do.

Run as a process, `python tests/object_store.py`, it prints its address. Objects live in memory. What it
keeps strictly: an object is there whole or not at all, every write has a new generation, and conditions on
generations (`ifGenerationMatch`, 0 for "not there") are decided and carried out in one piece. A POST to
`/_slow?SECONDS&PART` holds uploads of objects with PART in their name back before they happen, to
`/_lose?COUNT&PART` lets so many happen and answers that it is busy, to `/_fail?CODE&PART` refuses every
request with PART in its address; `/_log` is what was asked for since it was last read.
"""

import base64
import http.server
import itertools
import json
import re
import sys
import threading
import time
import urllib.parse

API = re.compile(r"(?:/(upload|download))?/storage/v1/b/([^/]+)(?:/(o)(?:/(.+))?)?$")
COPY = re.compile(r"/storage/v1/b/([^/]+)/o/(.+)/(copyTo|rewriteTo)/b/([^/]+)/o/(.+)$")
STAMP = "%Y-%m-%dT%H:%M:%S.000Z"


def crc32c(data, _table=[]):  # noqa: B006
    if not _table:
        for byte in range(256):
            for _ in range(8):
                byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
            _table.append(byte)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _table[crc & 255 ^ byte]
    return base64.b64encode((crc ^ 0xFFFFFFFF).to_bytes(4, "big")).decode()


class Refused(Exception):
    """An answer of the store that is no success: its status."""


class Objects:
    """Buckets of objects; every public method is one indivisible act."""

    def __init__(self):
        self.lock, self.objects, self.uploads = threading.RLock(), {}, {}
        self.generations = itertools.count(1_000_000)
        self.log, self.slow, self.fail, self.lose = [], (0.0, ""), (0, ""), [0, ""]

    def check(self, place, query):
        found = self.objects.get(place)
        generation = found["generation"] if found else "0"
        if "ifGenerationMatch" in query and query["ifGenerationMatch"] != generation:
            raise Refused(412)
        if "ifGenerationNotMatch" in query and query["ifGenerationNotMatch"] == generation:
            raise Refused(304)
        if "generation" in query and query["generation"] != generation:
            raise Refused(404)
        return found

    def read(self, place, query):
        with self.lock:
            found = self.check(place, query)
            if found is None:
                raise Refused(404)
            return found

    def write(self, place, data, query):
        with self.lock:
            self.check(place, query)
            now = time.strftime(STAMP, time.gmtime())
            self.objects[place] = found = {
                "kind": "storage#object",
                "bucket": place[0],
                "name": place[1],
                "generation": str(next(self.generations)),
                "metageneration": "1",
                "size": str(len(data)),
                "contentType": "application/octet-stream",
                "timeCreated": now,
                "updated": now,
                "etag": "x",
                "data": data,
            }
            return found

    def delete(self, place, query):
        with self.lock:
            if self.check(place, query) is None:
                raise Refused(404)
            del self.objects[place]

    def copy(self, source, target):
        with self.lock:
            return self.write(target, self.read(source, {})["data"], {})

    def list(self, bucket, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        start, end = query.get("startOffset", ""), query.get("endOffset", "")
        page, most = query.get("pageToken", ""), int(query.get("maxResults", 1000))
        items, prefixes = [], []
        with self.lock:
            for b, name in sorted(self.objects):
                if b != bucket or not name.startswith(prefix) or name < start or (end and name >= end):
                    continue
                below = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
                folder = prefix + below[0] + below[1] if below[1] else ""
                if (folder or name) <= page or (folder and folder in prefixes):
                    continue
                if len(items) + len(prefixes) == most:
                    last = max(prefixes[-1:] + [x["name"] for x in items[-1:]])
                    return {"items": items, "prefixes": prefixes, "nextPageToken": last}
                if folder:
                    prefixes.append(folder)
                else:
                    items.append(self.objects[b, name])
        return {"kind": "storage#objects", "items": items, "prefixes": prefixes}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version, wbufsize, disable_nagle_algorithm = "HTTP/1.1", 1 << 16, True
    store: Objects

    def log_message(self, format, *args):
        pass

    def answer(self, status=200, body=b"", **headers):
        if not isinstance(body, bytes):
            headers["Content-Type"] = "application/json"
            body = json.dumps(body, default=lambda data: None).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def handle_one(self):
        url = urllib.parse.urlsplit(self.path)
        query, sent = dict(urllib.parse.parse_qsl(url.query)), self.body()
        self.store.log.append(f"{self.command} {urllib.parse.unquote(self.path)}")
        try:
            if url.path.startswith("/_"):
                return self.control(url.path, url.query)
            code, part = self.store.fail
            if code and part in urllib.parse.unquote(self.path):
                raise Refused(code)
            if match := COPY.match(url.path):
                self.copied(*map(urllib.parse.unquote, match.groups()))
            elif match := API.match(url.path):
                way, bucket, objects, name = (x and urllib.parse.unquote(x) for x in match.groups())
                self.api(way, bucket, objects, name, query, sent)
            else:
                raise Refused(404)
        except Refused as error:
            [code] = error.args
            body = {"error": {"code": code, "message": f"{code} of the local store", "errors": []}}
            self.answer(code, b"" if code == 304 else body)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_one

    def control(self, path, query):
        number, _, part = query.partition("&")
        if path == "/_slow":
            self.store.slow = (float(number), part)
        elif path == "/_fail":
            self.store.fail = (int(number), part)
        elif path == "/_lose":
            self.store.lose = [int(number), part]
        log, self.store.log = self.store.log, []
        self.answer(body=log if path == "/_log" else {})

    def copied(self, bucket, name, how, to_bucket, to_name):
        made = plain(self.store.copy((bucket, name), (to_bucket, to_name)))
        self.answer(
            body={"done": True, "resource": made, "objectSize": made["size"]} if "re" in how else made
        )

    def api(self, way, bucket, objects, name, query, sent):
        if bucket.startswith("no-"):
            raise Refused(404)
        if bucket.startswith("forbidden-"):
            raise Refused(403)
        if objects is None:
            self.answer(body={"kind": "storage#bucket", "name": bucket, "id": bucket, "location": "HERE"})
        elif way == "upload":
            self.upload(bucket, query, sent)
        elif name is None:
            found = self.store.list(bucket, query)
            self.answer(body=found | {"items": [plain(item) for item in found["items"]]})
        elif self.command == "DELETE":
            self.store.delete((bucket, name), query)
            self.answer(204)
        elif query.get("alt") == "media" or way == "download":
            self.download(self.store.read((bucket, name), query))
        else:
            self.answer(body=plain(self.store.read((bucket, name), query)))

    def download(self, found):
        data, headers = (
            found["data"],
            {"x-goog-generation": found["generation"], "x-goog-metageneration": "1"},
        )
        asked = re.match(r"bytes=(\d*)-(\d*)$", self.headers.get("Range", ""))
        if not asked:
            return self.answer(200, data, **headers)
        first, last = asked.groups()
        start = int(first) if first else max(len(data) - int(last), 0)
        end = min(int(last) + 1, len(data)) if first and last else len(data)
        if start >= len(data):
            raise Refused(416)
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        return self.answer(206, data[start:end], **headers)

    def upload(self, bucket, query, sent):
        kind = query.get("uploadType")
        if "upload_id" in query:
            return self.go_on(query["upload_id"], sent)
        name, data = query.get("name"), sent
        if kind == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            _, about, content, _ = re.split(rb"(?:\r?\n)?--" + re.escape(boundary), sent)
            about, data = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in (about, content))
            name = name or json.loads(about)["name"]
        elif kind == "resumable":
            name = name or json.loads(sent)["name"]
            number = f"{next(self.store.generations)}"
            self.store.uploads[number] = [(bucket, name), query, b""]
            host, place = self.headers["Host"], f"/upload/storage/v1/b/{bucket}/o"
            return self.answer(Location=f"http://{host}{place}?uploadType=resumable&upload_id={number}")
        return self.answer(body=plain(self.write((bucket, name), data, query)))

    def go_on(self, number, sent):
        upload = self.store.uploads[number]
        span = re.match(
            r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", self.headers.get("Content-Range", "bytes */*")
        )
        if span[1] is not None:
            upload[2] = upload[2][: int(span[1])] + sent
        if self.command == "DELETE":
            del self.store.uploads[number]
            return self.answer(499)
        if span[3] == "*" or len(upload[2]) < int(span[3]):
            had = {"Range": f"bytes=0-{len(upload[2]) - 1}"} if upload[2] else {}
            return self.answer(308, **had)
        place, query, data = self.store.uploads.pop(number)
        return self.answer(body=plain(self.write(place, data, query)))

    def write(self, place, data, query):
        """The act itself; whoever is killed while it is held back has written nothing, or all."""
        seconds, part = self.store.slow
        if seconds and part in place[1]:
            time.sleep(seconds)
        made = self.store.write(place, data, query)
        if self.store.lose[0] and self.store.lose[1] in place[1]:
            self.store.lose[0] -= 1
            raise Refused(503)
        return made


def plain(found):
    shown = {name: value for name, value in found.items() if name != "data"}
    return shown | {"crc32c": crc32c(found["data"][:0]) if found["size"] == "0" else "", "md5Hash": ""}


class Server(http.server.ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # of a client that was killed
            super().handle_error(request, client_address)


def main():
    Handler.store = Objects()
    server = Server(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # until whoever started it closes its end, or is gone


if __name__ == "__main__":
    main()
