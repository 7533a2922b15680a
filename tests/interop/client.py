"""gRPC interoperability client that also reports what it sent and received.

Runs the cases against a server of interop.proto. On success prints one JSON object:
calls, status codes, messages and compressed message bytes per method. The messages
are counted here; the bytes come from gRPC's OpenTelemetry plugin.
"""

import argparse
import contextlib
import json
import math
import os
import queue
import random
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# How long the plugin buffers measurements; leaving it waits this long.
os.environ.setdefault("GRPC_PYTHON_CENSUS_EXPORT_BATCH_INTERVAL_SECS", "0.05")

import grpc
from grpc_observability import OpenTelemetryPlugin
from grpc_tools import protoc
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader


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

Code = grpc.StatusCode
TRUE, FALSE = pb.BoolValue(value=True), pb.BoolValue(value=False)
# What `compression=grpc.Compression.Gzip` stands for. That argument is of no use here:
# grpcio 1.85 ignores it in StreamUnaryMultiCallable.future.
GZIP = {"metadata": (("grpc-internal-encoding-request", "gzip"),)}
CALL_TIMEOUT = 30.0
BYTES_METRICS = {
    "grpc.client.attempt.sent_total_compressed_message_size": "bytes_sent",
    "grpc.client.attempt.rcvd_total_compressed_message_size": "bytes_received",
}


@dataclass
class Traffic:
    """What one method's calls amounted to."""

    calls: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    messages_sent: int = 0
    messages_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


Methods = dict[str, Traffic]


class Call:
    """One call. Every call must end in `finish`, which is where it is counted."""

    def __init__(self, traffic: Traffic, method: Any, request: Any, options: dict[str, Any]) -> None:
        self.traffic = traffic
        # Only the methods with a single response have `future`.
        self.single_response = hasattr(method, "future")
        start = method.future if self.single_response else method
        if isinstance(request, Iterator):
            request = self._count_sent(request)
        else:
            traffic.messages_sent += 1
        self.rpc = start(request, **{"timeout": CALL_TIMEOUT, **options})

    def _count_sent(self, requests: Iterator[Any]) -> Iterator[Any]:
        for request in requests:
            self.traffic.messages_sent += 1
            yield request

    def receive(self) -> Any:
        response = self.rpc.result() if self.single_response else next(self.rpc)
        self.traffic.messages_received += 1
        return response

    def receive_payload(self, size: int) -> None:
        check("payload", self.receive().payload, payload(size))

    def finish(self, code: grpc.StatusCode = Code.OK, details: str | None = None) -> None:
        """Waits for the end of the call, which must have no responses left."""
        if not self.single_response:
            with contextlib.suppress(StopIteration, grpc.RpcError):
                self.receive()
                raise AssertionError("one response too many")
        seen = self.rpc.code()
        self.traffic.calls += 1
        self.traffic.codes[seen.name] = self.traffic.codes.get(seen.name, 0) + 1
        check("status", seen, code, self.rpc.details())
        if details is not None:
            check("status message", self.rpc.details(), details)


class Client:
    """Starts calls and has their traffic counted in `methods`."""

    def __init__(self, channel: grpc.Channel, methods: Methods) -> None:
        self.channel = channel
        self.methods = methods

    def call(self, name: str, request: Any, service: str = "TestService", **options: Any) -> Call:
        traffic = self.methods[f"grpc.testing.{service}/{name}"]
        stub = getattr(stubs, f"{service}Stub")(self.channel)
        return Call(traffic, getattr(stub, name), request, options)


def check(what: str, seen: Any, expected: Any, context: object = "") -> None:
    if seen != expected:
        raise AssertionError(f"{what}: {str(seen)[:200]!r} instead of {str(expected)[:200]!r} {context}")


def payload(size: int) -> Any:
    return pb.Payload(body=bytes(size))


def simple_request(**fields: Any) -> Any:
    return pb.SimpleRequest(response_size=314159, payload=payload(271828), **fields)


def input_request(size: int, **fields: Any) -> Any:
    return pb.StreamingInputCallRequest(payload=payload(size), **fields)


def duplex_request(response_size: int, payload_size: int, interval_us: int = 0) -> Any:
    wanted = pb.ResponseParameters(size=response_size, interval_us=interval_us)
    return pb.StreamingOutputCallRequest(response_parameters=[wanted], payload=payload(payload_size))


def exchange(call: Call) -> Call:
    """Goes through a call that has one large response."""
    call.receive_payload(314159)
    call.finish()
    return call


def open_stream() -> tuple[Callable[[Any], None], Iterator[Any]]:
    """A function that sends a request, or ends the stream when given None, and the requests."""
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    return requests.put, iter(requests.get, None)


def empty_unary(client: Client) -> None:
    call = client.call("EmptyCall", pb.Empty())
    check("response", call.receive(), pb.Empty())
    call.finish()


def large_unary(client: Client) -> None:
    exchange(client.call("UnaryCall", simple_request()))


def client_streaming(client: Client) -> None:
    call = client.call("StreamingInputCall", iter([input_request(size) for size in (27182, 8, 1828, 45904)]))
    check("aggregated size", call.receive().aggregated_payload_size, 74922)
    call.finish()


def server_streaming(client: Client) -> None:
    sizes = (31415, 9, 2653, 58979)
    wanted = [pb.ResponseParameters(size=size) for size in sizes]
    call = client.call("StreamingOutputCall", pb.StreamingOutputCallRequest(response_parameters=wanted))
    for size in sizes:
        call.receive_payload(size)
    call.finish()


def ping_pong(client: Client) -> None:
    send, requests = open_stream()
    call = client.call("FullDuplexCall", requests)
    for response_size, payload_size in ((31415, 27182), (9, 8), (2653, 1828), (58979, 45904)):
        send(duplex_request(response_size, payload_size))
        call.receive_payload(response_size)
    send(None)
    call.finish()


def empty_stream(client: Client) -> None:
    client.call("FullDuplexCall", iter([])).finish()


def status_code_and_message(client: Client) -> None:
    status = pb.EchoStatus(code=Code.UNKNOWN.value[0], message="test status message")
    unary = client.call("UnaryCall", pb.SimpleRequest(response_status=status))
    unary.finish(Code.UNKNOWN, status.message)
    duplex = client.call("FullDuplexCall", iter([pb.StreamingOutputCallRequest(response_status=status)]))
    duplex.finish(Code.UNKNOWN, status.message)


def special_status_message(client: Client) -> None:
    message = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"
    status = pb.EchoStatus(code=Code.UNKNOWN.value[0], message=message)
    client.call("UnaryCall", pb.SimpleRequest(response_status=status)).finish(Code.UNKNOWN, message)


def unimplemented_method(client: Client) -> None:
    client.call("UnimplementedCall", pb.Empty()).finish(Code.UNIMPLEMENTED)


def unimplemented_service(client: Client) -> None:
    client.call("UnimplementedCall", pb.Empty(), service="UnimplementedService").finish(Code.UNIMPLEMENTED)


def custom_metadata(client: Client) -> None:
    initial = ("x-grpc-test-echo-initial", "test_initial_metadata_value")
    trailing = ("x-grpc-test-echo-trailing-bin", b"\xab\xab\xab")
    for name, request in (("UnaryCall", simple_request()), ("FullDuplexCall", iter([duplex_request(314159, 271828)]))):
        rpc = exchange(client.call(name, request, metadata=(initial, trailing))).rpc
        for metadata, sent in ((rpc.initial_metadata(), initial), (rpc.trailing_metadata(), trailing)):
            check(f"metadata of {name}", [tuple(pair) for pair in metadata if pair[0] == sent[0]], [sent])


def cancel_after_begin(client: Client) -> None:
    send, requests = open_stream()
    call = client.call("StreamingInputCall", requests)
    # Nothing tells when the headers have left, and a call cancelled before that never reaches the server.
    time.sleep(0.2)
    call.rpc.cancel()
    call.finish(Code.CANCELLED)
    send(None)


def cancel_after_first_response(client: Client) -> None:
    send, requests = open_stream()
    call = client.call("FullDuplexCall", requests)
    send(duplex_request(31415, 27182))
    call.receive_payload(31415)
    call.rpc.cancel()
    call.finish(Code.CANCELLED)
    send(None)


def timeout_on_sleeping_server(client: Client) -> None:
    request = duplex_request(31415, 27182, interval_us=1_000_000)
    client.call("FullDuplexCall", iter([request]), timeout=0.1).finish(Code.DEADLINE_EXCEEDED)


def client_compressed_unary_probe(client: Client) -> None:
    client.call("UnaryCall", simple_request(expect_compressed=TRUE)).finish(Code.INVALID_ARGUMENT)


def client_compressed_streaming_probe(client: Client) -> None:
    call = client.call("StreamingInputCall", iter([input_request(27182, expect_compressed=TRUE)]))
    call.finish(Code.INVALID_ARGUMENT)


def client_compressed_unary(client: Client) -> None:
    for compressed in (TRUE, FALSE):
        options = GZIP if compressed.value else {}
        exchange(client.call("UnaryCall", simple_request(expect_compressed=compressed), **options))


def client_compressed_streaming(client: Client) -> None:
    # The library cannot switch compression off for one message of a call, but sends as it
    # is a message that gzip would not shrink.
    noise = pb.Payload(body=random.Random(0).randbytes(45904))
    requests = [
        input_request(27182, expect_compressed=TRUE),
        pb.StreamingInputCallRequest(payload=noise, expect_compressed=FALSE),
    ]
    call = client.call("StreamingInputCall", iter(requests), **GZIP)
    check("aggregated size", call.receive().aggregated_payload_size, 73086)
    call.finish()


def server_compressed_unary(client: Client) -> None:
    for compressed in (TRUE, FALSE):
        exchange(client.call("UnaryCall", simple_request(response_compressed=compressed)))


def server_compressed_streaming(client: Client) -> None:
    wanted = [
        pb.ResponseParameters(size=31415, compressed=TRUE),
        pb.ResponseParameters(size=92653, compressed=FALSE),
    ]
    call = client.call("StreamingOutputCall", pb.StreamingOutputCallRequest(response_parameters=wanted))
    for parameters in wanted:
        call.receive_payload(parameters.size)
    call.finish()


@dataclass
class Case:
    run: Callable[[Client], None]
    # Whether both sides agree about how many messages the calls carried.
    certain: bool = True
    # Whether it is run only when named: the probes need a server that checks expect_compressed.
    optional: bool = False
    # Bounds of the compressed bytes, for the cases about compression.
    bytes_sent: tuple[float, float] = (0, math.inf)
    bytes_received: tuple[float, float] = (0, math.inf)


CASES = {
    case.run.__name__: case
    for case in (
        Case(empty_unary),
        Case(large_unary),
        Case(client_streaming),
        Case(server_streaming),
        Case(ping_pong),
        Case(empty_stream),
        Case(status_code_and_message),
        Case(special_status_message),
        Case(unimplemented_method, certain=False),
        Case(unimplemented_service, certain=False),
        Case(custom_metadata),
        Case(cancel_after_begin, certain=False),
        Case(cancel_after_first_response, certain=False),
        Case(timeout_on_sleeping_server, certain=False),
        Case(client_compressed_unary_probe, certain=False, optional=True),
        Case(client_compressed_streaming_probe, certain=False, optional=True),
        Case(client_compressed_unary, bytes_sent=(271828, 281828)),
        Case(client_compressed_streaming, bytes_sent=(45904, 47904)),
        Case(server_compressed_unary, bytes_received=(314159, 324159)),
        # A server that compresses a whole stream or none of it compresses both responses.
        Case(server_compressed_streaming, bytes_received=(1, 102653)),
    )
}


def run_case(case: Case, target: str, methods: Methods) -> None:
    """Runs a case on its own connection and with its own measurement of bytes."""
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    plugin = OpenTelemetryPlugin(meter_provider=provider)
    plugin.register_global()
    try:
        with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
            grpc.channel_ready_future(channel).result(timeout=10)
            case.run(Client(channel, methods))
    finally:
        plugin.deregister_global()
    totals = {"bytes_sent": 0, "bytes_received": 0}
    for method, attribute, size in measured_bytes(reader):
        totals[attribute] += size
        setattr(methods[method], attribute, getattr(methods[method], attribute) + size)
    provider.shutdown()
    for attribute, total in totals.items():
        low, high = getattr(case, attribute)
        if not low <= total <= high:
            raise AssertionError(f"{attribute}: {total} is not within {low} and {high}")


def measured_bytes(reader: InMemoryMetricReader) -> Iterator[tuple[str, str, int]]:
    """Method, attribute of `Traffic`, and sum of bytes."""
    for resource in reader.get_metrics_data().resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points if metric.name in BYTES_METRICS else ():
                    yield point.attributes["grpc.method"], BYTES_METRICS[metric.name], int(point.sum)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True, help="host:port of the server")
    default = ",".join(name for name, case in CASES.items() if not case.optional)
    parser.add_argument("--cases", default=default, help="comma-separated names out of: " + " ".join(CASES))
    args = parser.parse_args()
    names = args.cases.split(",")
    if unknown := set(names) - set(CASES):
        parser.error(f"unknown cases: {', '.join(sorted(unknown))}")

    certain: Methods = defaultdict(Traffic)
    uncertain: Methods = defaultdict(Traffic)
    passed = []
    for name in names:
        try:
            run_case(CASES[name], args.target, certain if CASES[name].certain else uncertain)
        except Exception:
            print(f"{name} failed", file=sys.stderr)
            traceback.print_exc()
        else:
            passed.append(name)
    if passed != names:
        return 1
    report = {
        "cases": passed,
        "methods": {method: asdict(traffic) for method, traffic in certain.items()},
        "uncertain": {method: asdict(traffic) for method, traffic in uncertain.items()},
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
