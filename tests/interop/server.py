"""gRPC interoperability server, for the client of `client.py` or any other of interop.proto.

Says `listening on HOST:PORT` once it does, and serves until it is killed. Echoes the two
metadata keys of the interop cases, in the headers and in the trailers.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from grpc_tools import protoc


def compile_proto() -> tuple[Any, Any]:
    """Generates and imports the message and stub modules of interop.proto."""
    source = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory() as out:
        args = ["protoc", f"-I{source}", f"--python_out={out}", f"--grpc_python_out={out}"]
        if protoc.main([*args, "interop.proto"]) != 0:
            sys.exit("interop.proto does not compile")
        sys.path.insert(0, out)
        import interop_pb2
        import interop_pb2_grpc
    return interop_pb2, interop_pb2_grpc


pb, stubs = compile_proto()

CODES = {code.value[0]: code for code in grpc.StatusCode}
INITIAL, TRAILING = "x-grpc-test-echo-initial", "x-grpc-test-echo-trailing-bin"


def payload(size: int) -> Any:
    return pb.Payload(body=bytes(size))


def echo_metadata(context: grpc.ServicerContext) -> None:
    sent = dict(context.invocation_metadata())
    if INITIAL in sent:
        context.send_initial_metadata(((INITIAL, sent[INITIAL]),))
    if TRAILING in sent:
        context.set_trailing_metadata(((TRAILING, sent[TRAILING]),))


def end_as_told(request: Any, context: grpc.ServicerContext) -> None:
    if request.response_status.code:
        context.abort(CODES[request.response_status.code], request.response_status.message)


class TestService(stubs.TestServiceServicer):
    def EmptyCall(self, request: Any, context: grpc.ServicerContext) -> Any:
        return pb.Empty()

    def UnaryCall(self, request: Any, context: grpc.ServicerContext) -> Any:
        echo_metadata(context)
        end_as_told(request, context)
        if request.response_compressed.value:
            context.set_compression(grpc.Compression.Gzip)
        return pb.SimpleResponse(payload=payload(request.response_size))

    def StreamingInputCall(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        size = sum(len(request.payload.body) for request in requests)
        return pb.StreamingInputCallResponse(aggregated_payload_size=size)

    def StreamingOutputCall(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        if any(wanted.compressed.value for wanted in request.response_parameters):
            context.set_compression(grpc.Compression.Gzip)
        yield from self.answers(request)

    def FullDuplexCall(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        echo_metadata(context)
        for request in requests:
            end_as_told(request, context)
            yield from self.answers(request)

    @staticmethod
    def answers(request: Any) -> Iterator[Any]:
        for wanted in request.response_parameters:
            time.sleep(wanted.interval_us / 1e6)
            yield pb.StreamingOutputCallResponse(payload=payload(wanted.size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:0", help="host:port; port 0 takes a free one")
    args = parser.parse_args()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    stubs.add_TestServiceServicer_to_server(TestService(), server)
    host = args.listen.rpartition(":")[0]
    port = server.add_insecure_port(args.listen)
    server.start()
    print(f"listening on {host}:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
