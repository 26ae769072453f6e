#!/usr/bin/env python3
"""Sends a command to Twincast's queue, prints the answer, and can wait for the end of the rollout.

    pip install pika
    export TWINCAST__AMQP__URL=amqp://guest:guest@localhost:5672
    python3 publish.py start.json --wait

The command is a JSON file; - is standard input. The exit codes are the exit codes of `twincast`:
0 done, 3 refused, 4 some devices were not sent the message, did not take the message, or failed,
8 aborted, 9 no answer.

Without --wait, exit code 0 means: the orchestrator has executed the command. With --wait, the
script waits for the end of the rollout, also while the rollout is paused.

With --env NAME, @NAME@ in the texts of the command becomes the value of the environment variable
NAME. The value is data and never part of a script.
"""

import argparse
import json
import os
import re
import sys
import time
import uuid

import pika

# RabbitMQ's direct reply-to: replies arrive on the channel of the request.
REPLY_QUEUE = "amq.rabbitmq.reply-to"
CONTENT_TYPE = "application/vnd.twincast.command.v1+json"
EVENT_TIMEOUT = 300  # seconds without an event until the script requests the rollout's state
REFUSALS = (
    pika.exceptions.AuthenticationError,
    pika.exceptions.ProbableAuthenticationError,
    pika.exceptions.ProbableAccessDeniedError,
)
EXIT_CODES = {"succeeded": 0, "finished_with_failures": 4, "failed": 3, "aborted": 8}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "command", type=argparse.FileType("rb"), help="a JSON file; - for standard input"
    )
    parser.add_argument(
        "--wait", action="store_true", help="wait until the rollout ends (for start and status)"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=30,
        help="seconds to wait for an answer, and for RabbitMQ (30)",
    )
    parser.add_argument(
        "--away", type=float, default=600, help="seconds that all may be away while it waits (600)"
    )
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME",
        help="@NAME@ in the command becomes this variable",
    )
    parser.add_argument(
        "--url", default=os.environ.get("TWINCAST__AMQP__URL"), help="default: TWINCAST__AMQP__URL"
    )
    parser.add_argument(
        "--prefix", default="twincast", help="what the names of all queues begin with (twincast)"
    )
    args = parser.parse_args()
    if not args.url:
        parser.error("give the broker with --url or TWINCAST__AMQP__URL")
    args.body = args.command.read()
    for name in args.env:
        if name not in os.environ:
            parser.error(f"--env {name}: the environment has no {name}")
    if args.env:
        args.body = json.dumps(substitute(json.loads(args.body), args.env)).encode()

    # After the acceptance of the command, the script waits for unavailable services (--away).
    args.accepted = False
    args.last_contact_at = time.monotonic()
    while True:
        try:
            with Broker(args.url, args.prefix) as broker:
                return run(broker, args)
        except Unavailable as error:
            problem = str(error)
        except REFUSALS as error:
            problem = f"RabbitMQ refuses the user, the password or the virtual host: {error!r}"
            if not args.accepted:
                print(problem, file=sys.stderr)
                return 9
        except (pika.exceptions.AMQPError, OSError) as error:
            problem = f"RabbitMQ cannot be used: {error!r}"
        max_wait = args.away if args.accepted else args.timeout
        remaining = args.last_contact_at + max_wait - time.monotonic()
        if not args.wait or remaining <= 0:
            print(f"no answer: {problem}", file=sys.stderr)
            return 9
        print(f"waiting: {problem}", file=sys.stderr)
        time.sleep(min(5, remaining))


def substitute(value, names):
    """Returns the command with the values of the environment in its texts."""
    if isinstance(value, dict):
        return {key: substitute(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [substitute(inner, names) for inner in value]
    if isinstance(value, str):
        # Replace all names in one pass: a value is not searched for names.
        return re.sub(
            f"@({'|'.join(map(re.escape, names))})@", lambda match: os.environ[match[1]], value
        )
    return value


class Unavailable(Exception):
    """No orchestrator answers."""


def run(broker, args):
    answer = broker.request(args.body, args.timeout)
    if answer is None:
        raise Unavailable(f"no answer within {args.timeout:g} s; is an orchestrator running?")
    args.last_contact_at = time.monotonic()
    print(json.dumps(answer))
    if not answer["ok"]:
        return 3
    if not args.wait:
        return 0
    rollout = answer["rollouts"][0]
    # After a lost connection, the script requests the state of the rollout, and does not repeat the
    # command.
    args.body = json.dumps({"command": "status", "rollout": rollout["name"]}).encode()
    args.accepted = True
    if rollout["phase"] in EXIT_CODES:
        return EXIT_CODES[rollout["phase"]]
    for event in broker.events():
        args.last_contact_at = time.monotonic()
        if event["subject"] != rollout["name"]:
            continue
        print(json.dumps(event))
        phase = event["data"]["phase"]
        if phase in EXIT_CODES:
            return EXIT_CODES[phase]
    return run(broker, args)


class Broker:
    """A connection to RabbitMQ. The connection receives events from the start, so no event is
    missed."""

    def __init__(self, url, prefix):
        # The URL may list several nodes of a cluster, separated by commas: the first answering node
        # is used.
        self.connection = pika.BlockingConnection(
            [pika.URLParameters(node) for node in url.split(",")]
        )
        self.channel = self.connection.channel()
        self.command_queue = f"{prefix}.commands"
        self.event_queue = self.channel.queue_declare("", exclusive=True).method.queue
        self.channel.queue_bind(self.event_queue, f"{prefix}.events", routing_key="rollout.#")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.connection.is_open:
            self.connection.close()

    def request(self, body, timeout):
        """Sends a command and returns the answer, or None without an answer in time."""
        answers = []
        request_id = str(uuid.uuid4())

        def on_reply(_channel, _method, properties, reply):
            if properties.correlation_id == request_id:
                answers.append(json.loads(reply))

        consumer_tag = self.channel.basic_consume(REPLY_QUEUE, on_reply, auto_ack=True)
        self.channel.confirm_delivery()
        self.channel.basic_publish(
            exchange="",
            routing_key=self.command_queue,
            body=body,
            properties=pika.BasicProperties(
                content_type=CONTENT_TYPE,
                delivery_mode=pika.DeliveryMode.Persistent.value,
                message_id=request_id,
                correlation_id=request_id,
                reply_to=REPLY_QUEUE,
            ),
            mandatory=True,
        )
        deadline = time.monotonic() + timeout
        while not answers and time.monotonic() < deadline:
            self.connection.process_data_events(time_limit=1)
        self.channel.basic_cancel(consumer_tag)
        return answers[0] if answers else None

    def events(self):
        """Yields events until no event has arrived for EVENT_TIMEOUT seconds. An event may arrive
        twice, with the same id."""
        for method, _properties, body in self.channel.consume(
            self.event_queue, auto_ack=True, inactivity_timeout=EVENT_TIMEOUT
        ):
            if method is None:
                break
            yield json.loads(body)
        self.channel.cancel()


if __name__ == "__main__":
    sys.exit(main())
