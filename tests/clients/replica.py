"""A server of a real engine that speaks each dialect as it is documented, with faults on request.

Run as a program it serves a model's folder, or pocket, in a process of its own, so that it can be killed.
"""

import base64
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from cartridges.compose import compose
from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from cartridges.model import load_model


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        served = self.server
        if self.path != "/v1/models" or not served.tells_models:
            return self.answer({"detail": "Not Found"}, 404)
        if served.key and self.headers.get("Authorization") != f"Bearer {served.key}":
            return self.answer({"error": {"message": "wrong key"}}, 401)
        about = {"id": "served", "object": "model", "owned_by": served.owner, "max_model_len": 900}
        return self.answer({"object": "list", "data": [about]})

    def do_POST(self):
        served = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with served.lock:
            served.bodies.append((self.path, body))
            served.num_running += 1
            served.most_running = max(served.most_running, served.num_running)
            fault = served.faults.pop(0) if served.faults else None
        try:
            time.sleep(served.pause_s)
            if fault == "drop":
                self.close_connection = True
                self.connection.close()
                return None
            if isinstance(fault, int):
                return self.answer({"error": {"message": f"fault {fault}"}}, fault, {"Retry-After": "0"})
            if fault == "slow":
                time.sleep(1.5)
            if fault is not None and fault != "slow":
                return self.answer(fault)
            if body.get("stream"):
                return self.stream(body)
            return self.answer(WAYS[self.path](served.engine, body))
        finally:
            with served.lock:
                served.num_running -= 1

    def stream(self, body):
        """A chat as server-sent events, behind the cartridges that the model's name names."""
        served = self.server
        if unknown := [name for name in body["model"].split("+") if name not in {*served.cartridges, "served"}]:
            return self.answer({"error": {"message": f"there is no model {unknown[0]}"}}, 404)
        cartridges = [served.cartridges[name] for name in body["model"].split("+") if name != "served"]
        request = Request(
            tuple(served.engine.model.chat.prompt(body["messages"])),
            max_new_tokens=body["max_tokens"],
            cartridge=compose(cartridges, served.engine.model) if cartridges else None,
        )
        chunks = [{"delta": {"role": "assistant", "content": ""}}]
        chunks += [{"delta": {"content": piece}} for piece in served.engine.stream(request)]
        chunks += [{"delta": {}, "finish_reason": "stop"}]
        lines = [json.dumps({"choices": [{"index": 0, **chunk}]}) for chunk in chunks]
        return self.answer("".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]))

    def answer(self, content, status=200, headers=None):
        raw = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)
        except (BrokenPipeError, ConnectionResetError):
            pass


class Replica(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, engine, faults=(), pause_s=0.0, owner="vllm", key="", tells_models=True):
        super().__init__(("127.0.0.1", 0), Handler)
        self.engine, self.faults, self.pause_s, self.owner, self.key = engine, list(faults), pause_s, owner, key
        self.tells_models, self.cartridges = tells_models, {}
        self.lock, self.bodies, self.num_running, self.most_running = threading.Lock(), [], 0, 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()


def generated(engine, prompt, body, max_new, k, prompt_from=None):
    request = Request(
        tuple(prompt),
        max_new_tokens=max_new,
        temperature=body.get("temperature", 1.0),
        top_p=body.get("top_p", 1.0),
        seed=body.get("seed") or body.get("sampling_seed") or 0,
        top_k_logprobs=k,
        prompt_logprobs_from=prompt_from,
    )
    return engine.generate([request])[0]


def rows_of(top):
    return [
        list(zip(ids.tolist(), logprobs.tolist(), strict=True))
        for ids, logprobs in zip(top.ids, top.logprobs, strict=True)
    ]


def usage(result):
    return {
        "prompt_tokens": result.num_prompt_tokens,
        "completion_tokens": len(result.token_ids),
        "prompt_tokens_details": {"cached_tokens": result.num_cached_tokens},
    }


def completions(engine, body):
    """The form of vLLM: rows are dicts by `token_id:N`, in no order, the chosen token first."""
    k, prompt = body.get("logprobs") or 0, body["prompt"]
    asked = body.get("prompt_logprobs")
    result = generated(engine, prompt, body, body["max_tokens"], k or asked or 0, 1 if asked else None)
    choice = {"index": 0, "text": result.text, "finish_reason": result.finish_reason, "logprobs": None}
    if k:
        assert body["return_tokens_as_token_ids"]
        rows = rows_of(result.logprobs)
        choice["logprobs"] = {
            "tokens": [f"token_id:{token}" for token in result.token_ids],
            "top_logprobs": [{f"token_id:{token}": p for token, p in reversed(row)} for row in rows],
        }
    if asked:
        rows = rows_of(result.prompt_logprobs)
        choice["prompt_logprobs"] = [None, *({str(token): {"logprob": p} for token, p in row} for row in rows)]
    if body.get("return_token_ids"):
        choice |= {"token_ids": result.token_ids, "prompt_token_ids": prompt}
    return {"id": "cmpl-1", "object": "text_completion", "choices": [choice], "usage": usage(result)}


def chat_completions(engine, body):
    """OpenAI's form; tokens as ids only where they are asked for so."""
    k = body.get("top_logprobs") or 0
    prompt = engine.model.chat.prompt(body["messages"])
    result = generated(engine, prompt, body, body["max_tokens"], k)
    by_id = body.get("return_tokens_as_token_ids")

    def written(token):
        return f"token_id:{token}" if by_id else engine.model.tokenizer.decode([token])

    message = {"role": "assistant", "content": result.text}
    choice = {"index": 0, "message": message, "finish_reason": result.finish_reason, "logprobs": None}
    if k:
        choice["logprobs"] = {
            "content": [
                {
                    "token": written(token),
                    "top_logprobs": [{"token": written(other), "logprob": p} for other, p in row],
                }
                for token, row in zip(result.token_ids, rows_of(result.logprobs), strict=True)
            ]
        }
    if body.get("return_token_ids"):
        choice |= {"token_ids": result.token_ids, "prompt_token_ids": prompt}
    return {"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice], "usage": usage(result)}


def generate(engine, body):
    """SGLang's form: (logprob, id, text) in `meta_info`; of the prompt, none of the first that is asked for."""
    sampling, k, prompt = body["sampling_params"], body.get("top_logprobs_num") or 0, body["input_ids"]
    start = body.get("logprob_start_len", -1)
    result = generated(engine, prompt, sampling, sampling["max_new_tokens"], k, start + 1 if start >= 0 and k else None)
    ended = {"type": "length", "length": len(result.token_ids)}
    if result.finish_reason == "stop":
        ended = {"type": "stop", "matched": result.token_ids[-1]}
    about = {
        "id": "1",
        "finish_reason": ended,
        "prompt_tokens": len(prompt),
        "completion_tokens": len(result.token_ids),
        "cached_tokens": result.num_cached_tokens,
    }
    if body.get("return_logprob"):
        about["output_top_logprobs"] = [[[p, token, None] for token, p in row] for row in rows_of(result.logprobs)]
        about["output_token_logprobs"] = [[-0.5, token, None] for token in result.token_ids]
        if result.prompt_logprobs is not None:
            rows = [[[p, token, None] for token, p in row] for row in rows_of(result.prompt_logprobs)]
            about["input_top_logprobs"] = [None, *rows]
    return {"text": result.text, "output_ids": result.token_ids, "meta_info": about}


def fingerprinted(engine, body):
    """Tokasaurus' form."""
    k = body.get("logprobs") or 0
    result = generated(engine, body["prompt"], body, body["max_tokens"], k)
    told = {"completion_ids": [result.token_ids], "packed_topk_indices": None, "packed_topk_logprobs": None}
    if k and body.get("logprobs_in_fingerprint"):
        packed = [np.ascontiguousarray(part) for part in (result.logprobs.ids, result.logprobs.logprobs)]
        told["packed_topk_indices"], told["packed_topk_logprobs"] = (
            [base64.b64encode(part.tobytes()).decode()] for part in packed
        )
    choice = {"index": 0, "text": result.text, "finish_reason": result.finish_reason, "logprobs": None}
    return {"choices": [choice], "usage": usage(result), "system_fingerprint": json.dumps(told)}


WAYS = {
    "/v1/completions": completions,
    "/v1/chat/completions": chat_completions,
    "/generate": generate,
    "/custom/cartridge/completions": fingerprinted,
}


if __name__ == "__main__":
    served = Replica(Engine(load_model(sys.argv[1], device="cpu")), pause_s=float(sys.argv[2]))
    print(served.url, flush=True)
    served.serve_forever()
