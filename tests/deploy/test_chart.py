"""Tests the Helm chart, offline: renders the chart with several values files, and checks every
manifest against the Kubernetes schemas and the requirements of the chart."""

import base64
import copy
import functools
import json
import re
import subprocess
import tarfile
import tempfile
import tomllib
import unittest
from pathlib import Path

import helm_python as helm
import jsonschema
import kubernetes_validate
import yaml

from common import HERE, ROOT, TWINCAST

CHART = ROOT / "helm/twincast"
CASES = {path.stem: path for path in sorted((HERE / "values").glob("*.yaml"))}
# The oldest supported version, and a new version.
KUBERNETES = ["1.27", "1.34"]
CRDS = yaml.safe_load((HERE / "crds.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())

chart = helm.Chart.load(CHART)
# Without the cache, the same large files are read for every manifest.
kubernetes_validate.utils.schema_contents = functools.cache(
    kubernetes_validate.utils.schema_contents
)


def values(case):
    return yaml.safe_load(CASES[case].read_text())


def render(given):
    return chart.render(given, name="demo", namespace="fleet")


@functools.cache
def manifests(case):
    """Returns all objects of a case."""
    texts = [text for path, text in render(values(case)).items() if not path.endswith(".txt")]
    return [one for text in texts for one in yaml.safe_load_all(text) if one]


def of_kind(case, *kinds):
    return [one for one in manifests(case) if one["kind"] in kinds]


def named(one):
    return f"{one['kind']} {one['metadata']['name']}"


def pods(case):
    """Yields (name, labels, spec) of all pods and pod templates."""
    for one in of_kind(case, "Deployment"):
        template = one["spec"]["template"]
        yield named(one), template["metadata"]["labels"], template["spec"]
    for one in of_kind(case, "Pod"):
        yield named(one), one["metadata"]["labels"], one["spec"]


def containers(spec):
    return spec.get("initContainers", []) + spec["containers"]


def config(case):
    """Returns the text of the processes' configuration file."""
    [one] = [one for one in of_kind(case, "ConfigMap") if "twincast.yaml" in one["data"]]
    return one["data"]["twincast.yaml"]


def matches(selector, labels):
    required = selector.get("matchLabels", {})
    one_of = selector.get("matchExpressions", [])
    return all(labels.get(key) == value for key, value in required.items()) and all(
        labels.get(expression["key"]) in expression["values"] for expression in one_of
    )


def overlay(base, change):
    """Merges values over base values, like Helm."""
    result = copy.deepcopy(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = overlay(result[key], value) if both else value
    return result


def at(path, value):
    """Returns values with a single entry at a path."""
    for key in reversed(path):
        value = {key: value}
    return value


def properties(schema=SCHEMA, path=()):
    """Yields (path, schema) of every value of the schema without nested values."""
    if "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].rsplit("/", 1)[1]]
    if "properties" not in schema:
        yield path, schema
        return
    for name, inner in schema["properties"].items():
        yield from properties(inner, path + (name,))


class EveryManifest(unittest.TestCase):
    """Requirements for any values."""

    def each(self):
        for case in CASES:
            with self.subTest(case):
                yield case

    def test_matches_the_kubernetes_schemas(self):
        for case in self.each():
            for one in manifests(case):
                with self.subTest(named(one)):
                    if one["kind"] in CRDS:
                        jsonschema.validate(one["spec"], CRDS[one["kind"]])
                    else:
                        for version in KUBERNETES:
                            kubernetes_validate.validate(one, version, strict=True)

    def test_has_a_unique_name(self):
        for case in self.each():
            names = [named(one) for one in manifests(case)]
            self.assertEqual(sorted(names), sorted(set(names)))
            for one in manifests(case):
                self.assertRegex(one["metadata"]["name"], r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$")

    def test_shows_no_secret(self):
        for case in self.each():
            texts = render(values(case))
            for path, text in texts.items():
                self.assertNotIn("hidden", text, path)
            for one in of_kind(case, "Secret"):
                for key, value in one["data"].items():
                    self.assertIn(b"hidden", base64.b64decode(value, validate=True), key)

    def test_pods_have_no_rights(self):
        for case in self.each():
            for name, _, spec in pods(case):
                with self.subTest(name):
                    self.assertIs(spec["automountServiceAccountToken"], False)
                    self.assertIs(spec["enableServiceLinks"], False)
                    security = spec["securityContext"]
                    self.assertIs(security["runAsNonRoot"], True)
                    self.assertNotEqual(security.get("runAsUser"), 0)
                    self.assertEqual(security["seccompProfile"], {"type": "RuntimeDefault"})
                    for forbidden in ["hostNetwork", "hostPID", "hostIPC"]:
                        self.assertNotIn(forbidden, spec)
                    for volume in spec["volumes"]:
                        self.assertLessEqual(set(volume), {"name", "configMap", "projected"})
                    for container in containers(spec):
                        security = container["securityContext"]
                        self.assertIs(security["readOnlyRootFilesystem"], True)
                        self.assertIs(security["allowPrivilegeEscalation"], False)
                        self.assertEqual(security["capabilities"], {"drop": ["ALL"]})
                        self.assertIn("memory", container["resources"]["limits"])
                        self.assertTrue(
                            all(mount["readOnly"] for mount in container["volumeMounts"])
                        )

    def test_processes_are_given_time_to_end(self):
        source = (ROOT / "worker/src/config.rs").read_text()
        [drain] = re.findall(r"drain: Duration::from_secs\((\d+)\)", source)
        least = SCHEMA["definitions"]["terminationGracePeriodSeconds"]["minimum"]
        self.assertGreaterEqual(least, int(drain) + 5)
        for case in self.each():
            for one in of_kind(case, "Deployment"):
                grace = one["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
                self.assertGreaterEqual(grace, least, named(one))

    def test_processes_are_probed(self):
        for case in self.each():
            port = yaml.safe_load(config(case))["http"]["listen"].rsplit(":", 1)[1]
            for one in of_kind(case, "Deployment"):
                [container] = one["spec"]["template"]["spec"]["containers"]
                ports = {"http": int(port)}
                if "api" in yaml.safe_load(config(case)) and container["name"] == "orchestrator":
                    ports["api"] = int(
                        yaml.safe_load(config(case))["api"]["listen"].rsplit(":", 1)[1]
                    )
                found = {port["name"]: port["containerPort"] for port in container["ports"]}
                self.assertEqual(found, ports)
                probes = {
                    "startupProbe": "/livez",
                    "livenessProbe": "/livez",
                    "readinessProbe": "/readyz",
                }
                for probe, path in probes.items():
                    self.assertEqual(container[probe]["httpGet"], {"path": path, "port": "http"})

    def test_selectors_find_their_pods(self):
        for case in self.each():
            labels = {name: labels for name, labels, _ in pods(case)}
            found = lambda selector: [name for name, of in labels.items() if matches(selector, of)]
            prefix = DEFAULTS["fullnameOverride"] or values(case).get(
                "fullnameOverride", "demo-twincast"
            )
            names = {of: f"Deployment {prefix}-{of}" for of in ["orchestrator", "worker"]} | {
                "test": f"Pod {prefix}-test"
            }
            for one in of_kind(
                case, "Deployment", "PodDisruptionBudget", "NetworkPolicy", "Service"
            ):
                with self.subTest(named(one)):
                    spec = one["spec"]
                    selector = (
                        spec["podSelector"] if one["kind"] == "NetworkPolicy" else spec["selector"]
                    )
                    if one["kind"] == "Service":
                        selector = {"matchLabels": selector}
                        # The name of a container port, see above.
                        port = "api" if one["metadata"]["name"].endswith("-api") else "http"
                        self.assertEqual([port["targetPort"] for port in spec["ports"]], [port])
                    component = one["metadata"]["labels"]["app.kubernetes.io/component"]
                    # The API's service selects only orchestrators.
                    self.assertEqual(
                        found(selector),
                        [names["orchestrator" if component == "api" else component]],
                    )
                    # An upgrade must not change a selector.
                    self.assertNotIn("app.kubernetes.io/version", selector["matchLabels"])
            for one in of_kind(case, "Deployment"):
                for spread in one["spec"]["template"]["spec"]["topologySpreadConstraints"]:
                    self.assertEqual(found(spread["labelSelector"]), [named(one)])
            for one in of_kind(case, "PodMonitor"):
                self.assertEqual(
                    sorted(found(one["spec"]["selector"])),
                    sorted(name for name in labels if "test" not in name),
                )
            for one in of_kind(case, "ServiceMonitor"):
                services = [
                    service
                    for service in of_kind(case, "Service")
                    if not service["metadata"]["name"].endswith("-api")
                ]
                seen = [
                    service
                    for service in of_kind(case, "Service")
                    if matches(one["spec"]["selector"], service["metadata"]["labels"])
                ]
                self.assertEqual(seen, services)
                for service in seen:
                    self.assertIn(one["spec"]["jobLabel"], service["metadata"]["labels"])
                    self.assertIn(
                        one["spec"]["endpoints"][0]["port"],
                        [port["name"] for port in service["spec"]["ports"]],
                    )

    def test_referenced_objects_exist(self):
        for case in self.each():
            made = {named(one) for one in manifests(case)}
            theirs = set(
                re.findall(r"(?:name|secret|configMap): ([a-z0-9-]+)", CASES[case].read_text())
            )
            account = values(case).get("serviceAccount", {})
            for name, _, spec in pods(case):
                self.assertTrue(
                    f"ServiceAccount {spec['serviceAccountName']}" in made
                    or not account.get("create", True),
                    name,
                )
                for volume in spec["volumes"]:
                    if "configMap" in volume:
                        self.assertIn(f"ConfigMap {volume['configMap']['name']}", made)
                        continue
                    for source in volume["projected"]["sources"]:
                        [(kind, of)] = source.items()
                        kind = {"secret": "Secret", "configMap": "ConfigMap"}[kind]
                        if f"{kind} {of['name']}" in made:
                            [secret] = [
                                one
                                for one in manifests(case)
                                if named(one) == f"{kind} {of['name']}"
                            ]
                            self.assertIn(of["items"][0]["key"], secret["data"])
                        else:
                            self.assertIn(of["name"], theirs)
            for one in of_kind(case, "ScaledObject", "HorizontalPodAutoscaler"):
                self.assertIn(f"Deployment {one['spec']['scaleTargetRef']['name']}", made)

    def test_files_of_the_configuration_are_mounted(self):
        def files(of):
            for key, value in of.items():
                if isinstance(value, dict):
                    yield from files(value)
                elif key.endswith("_file"):
                    yield value

        for case in self.each():
            whole = yaml.safe_load(config(case))
            for_all = {
                key: value for key, value in whole.items() if key not in ["api", "prometheus"]
            }
            for_test = {key: value for key, value in whole.items() if key != "api"}
            self.assertGreaterEqual(len(list(files(for_all))), 3)
            for name, _, spec in pods(case):
                with self.subTest(name):
                    # Only orchestrators have the keys of the API. Workers do not query Prometheus.
                    component = name.rsplit("-", 1)[-1]
                    named_in_config = sorted(
                        files({"orchestrator": whole, "test": for_test}.get(component, for_all))
                    )
                    [secrets] = [
                        volume["projected"] for volume in spec["volumes"] if "projected" in volume
                    ]
                    # Readable only by the owner and the group of the process.
                    self.assertEqual(secrets["defaultMode"], 0o440)
                    paths = [
                        item["path"]
                        for source in secrets["sources"]
                        for item in list(source.values())[0]["items"]
                    ]
                    for container in containers(spec):
                        folders = {
                            mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]
                        }
                        mounted = sorted(f"{folders['secrets']}/{path}" for path in paths)
                        self.assertEqual(mounted, named_in_config)
                        env = {
                            variable["name"]: variable.get("value") for variable in container["env"]
                        }
                        self.assertEqual(
                            env["TWINCAST_CONFIG"], f"{folders['config']}/twincast.yaml"
                        )

    def test_the_program_takes_the_configuration_and_the_commands(self):
        for case in self.each():
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "twincast.yaml"
                file.write_text(config(case))
                shown = subprocess.run(
                    [TWINCAST, "--config", file, "--json", "--print-config"],
                    capture_output=True,
                    text=True,
                )
                self.assertEqual(shown.returncode, 0, shown.stderr)
            for name, _, spec in pods(case):
                for container in containers(spec):
                    helped = subprocess.run(
                        [TWINCAST, *container["args"], "--help"], capture_output=True, text=True
                    )
                    self.assertEqual(helped.returncode, 0, f"{name}: {helped.stderr}")


class Particulars(unittest.TestCase):
    """Requirements for certain values."""

    def test_the_configuration_matches_the_values(self):
        secrets = "/run/secrets/twincast"
        expected = {
            "log": {"filter": "twincast=debug,info", "format": "pretty"},
            "run": {"give_up_after": "5m"},
            "http": {"listen": "0.0.0.0:9000"},
            "api": {
                "listen": "0.0.0.0:9443",
                "tokens_file": f"{secrets}/api/tokens",
                "oidc": {
                    "issuer": "https://login.example.com/realms/fleet",
                    "audience": "twincast",
                    "keys_url": "https://login.example.com/keys",
                    "ca_file": f"{secrets}/ca/oidc.pem",
                    "roles_claim": "realm_access.roles",
                    "name_claim": "email",
                    "roles": {
                        "viewer": ["employees"],
                        "operator": ["fleet-operators", "on-call"],
                        "approver": [],
                        "admin": ["fleet-admins"],
                    },
                },
                "tls_cert_file": f"{secrets}/api/tls.crt",
                "tls_key_file": f"{secrets}/api/tls.key",
            },
            "prometheus": {
                "url": "https://prometheus.example.com",
                "user": "ann",
                "password_file": f"{secrets}/prometheus-password",
                "headers_file": f"{secrets}/prometheus-headers",
                "ca_file": f"{secrets}/ca/prometheus.pem",
                "timeout": "5s",
            },
            "worker": {"slots": 8, "window": 128},
            "amqp": {
                "url_file": f"{secrets}/amqp-url",
                "ca_file": f"{secrets}/ca/amqp.pem",
                "prefix": "fleet",
            },
            "redis": {
                "url_file": f"{secrets}/redis-url",
                "ca_file": f"{secrets}/ca/redis.pem",
                "cluster": True,
                "tls_name": "redis.example.com",
                "prefix": "fleet:",
                "timeout": "3s",
            },
            "hubs": {
                "eu": {
                    "connection_string_file": f"{secrets}/hubs/eu",
                    "secondary_connection_string_file": f"{secrets}/hubs/eu.secondary",
                    "transport": "amqp_ws",
                    "proxy": "http://proxy.example:3128",
                    "tier": "S3",
                    "units": 2,
                    "share": "90%",
                    "send_timeout": "90s",
                },
                "us": {
                    "host": "us.azure-devices.net",
                    "auth": {
                        "method": "workload_identity",
                        "tenant_id": "5b1f0000-0000-0000-0000-000000000000",
                    },
                    "tier": "S1",
                    "units": 1,
                },
                "emulator": {
                    "connection_string_file": f"{secrets}/hubs/emulator",
                    "ca_file": f"{secrets}/ca/hub-emulator.pem",
                    "unlimited": True,
                    "https_port": 8443,
                    "amqp_port": 5671,
                    "address": "10.0.0.7",
                },
            },
        }
        self.assertEqual(yaml.safe_load(config("full")), expected)

    def test_an_autoscaler_owns_the_number_of_workers(self):
        for case, kind in {"full": "ScaledObject", "hpa": "HorizontalPodAutoscaler"}.items():
            [worker] = [
                one
                for one in of_kind(case, "Deployment")
                if one["metadata"]["name"].endswith("-worker")
            ]
            self.assertNotIn("replicas", worker["spec"])
            self.assertEqual(len(of_kind(case, "ScaledObject", "HorizontalPodAutoscaler")), 1)
            self.assertEqual(len(of_kind(case, kind)), 1)
        # A metric of the orchestrator.
        metric = DEFAULTS["worker"]["autoscaling"]["metric"]
        self.assertIn(f"`{metric}{{hub}}`", (ROOT / "docs/reference/metrics.md").read_text())
        for case in ["minimal", "secrets"]:
            self.assertEqual(of_kind(case, "ScaledObject", "HorizontalPodAutoscaler"), [])
            self.assertEqual(
                [one["spec"]["replicas"] for one in of_kind(case, "Deployment")], [2, 3]
            )

    def test_keda_watches_the_dispatch_queues(self):
        [scaled] = of_kind("full", "ScaledObject")
        queues = [trigger["metadata"]["queueName"] for trigger in scaled["spec"]["triggers"]]
        self.assertEqual(
            queues, ["fleet.dispatch.emulator", "fleet.dispatch.eu", "fleet.dispatch.us"]
        )
        [authentication] = of_kind("full", "TriggerAuthentication")
        for trigger in scaled["spec"]["triggers"]:
            self.assertEqual(
                trigger["authenticationRef"]["name"], authentication["metadata"]["name"]
            )
        self.assertEqual(
            authentication["spec"]["secretTargetRef"],
            [{"parameter": "host", "name": "rabbitmq", "key": "connection_string"}],
        )

    def test_network_policies_permit_required_ports_only(self):
        ports = {}
        for one in of_kind("hpa", "NetworkPolicy"):
            component = one["metadata"]["labels"]["app.kubernetes.io/component"]
            out = [port["port"] for rule in one["spec"]["egress"] for port in rule["ports"]]
            ports[component] = (
                [port["port"] for rule in one["spec"]["ingress"] for port in rule["ports"]],
                out,
            )
            self.assertEqual(one["spec"]["policyTypes"], ["Ingress", "Egress"])
        self.assertEqual(
            ports,
            {
                "orchestrator": (["http"], [53, 53, 5671, 5672, 6379, 443, 9090]),
                "worker": (["http"], [53, 53, 5671, 5672, 6379, 5671, 443]),
            },
        )
        [test] = [
            one
            for one in of_kind("full", "NetworkPolicy")
            if one["metadata"]["name"].endswith("-test")
        ]
        self.assertNotIn("ingress", test["spec"])
        rules = [
            sorted({port["port"] for port in rule["ports"]}) for rule in test["spec"]["egress"]
        ]
        # DNS, RabbitMQ, Redis, the hubs over AMQP and WebSockets, Prometheus, and the extra egress.
        self.assertEqual(rules, [[53], [5671], [6379], [443, 5671], [443], [4317]])

    def test_alerts_and_dashboards_match_the_repository(self):
        for case, base in {
            "full": "https://git.example.com/twincast/docs/",
            "hpa": "docs/",
        }.items():
            texts = [
                path.read_text()
                for path in sorted((ROOT / "deploy/prometheus").glob("*.rules.yml"))
            ]
            groups = [
                group
                for text in texts
                for group in yaml.safe_load(
                    text.replace("runbook_url: docs/", f"runbook_url: {base}")
                )["groups"]
            ]
            [rule] = of_kind(case, "PrometheusRule")
            self.assertEqual(rule["spec"]["groups"] or [], groups)
            dashboards = {
                f"twincast-{path.name}": path.read_text().rstrip("\n")
                for path in (ROOT / "deploy/grafana").glob("*.json")
            }
            found = {}
            for one in of_kind(case, "ConfigMap"):
                if "grafana_dashboard" in one["metadata"]["labels"]:
                    found |= {key: text.rstrip("\n") for key, text in one["data"].items()}
            self.assertEqual(found, dashboards)

    def test_a_change_of_configuration_or_secret_starts_processes_anew(self):
        def checksums(change):
            texts = render(overlay(values("minimal"), change))
            worker = yaml.safe_load(texts["twincast/templates/worker.yaml"])
            return worker["spec"]["template"]["metadata"]["annotations"]

        before = checksums({})
        after = checksums({"worker": {"slots": 3}})
        self.assertNotEqual(before["checksum/config"], after["checksum/config"])
        self.assertEqual(before["checksum/secret"], after["checksum/secret"])
        after = checksums({"redis": {"url": "redis://other"}})
        self.assertNotEqual(before["checksum/secret"], after["checksum/secret"])
        self.assertEqual(before, checksums({"worker": {"replicas": 9}}))

    def test_the_notes_name_the_next_steps(self):
        notes = render(values("minimal"))["twincast/templates/NOTES.txt"]
        for part in [
            "1 hub: main",
            "helm -n fleet test demo",
            "deploy/demo-twincast-orchestrator -- twincast submit -",
            "existingSecret",
        ]:
            self.assertIn(part, notes)

    def test_the_package_is_whole(self):
        with tempfile.TemporaryDirectory() as folder:
            archive = helm.package(CHART, destination=folder)
            with tarfile.open(archive) as tar:
                names = set(tar.getnames())
        linked = [f"files/grafana/{path.name}" for path in (ROOT / "deploy/grafana").glob("*.json")]
        linked += [
            f"files/prometheus/{path.name}"
            for path in (ROOT / "deploy/prometheus").glob("*.rules.yml")
        ]
        self.assertEqual(
            sorted(name for name in names if "/files/" in name),
            sorted(f"twincast/{name}" for name in linked),
        )
        self.assertLessEqual(
            {
                f"twincast/{name}"
                for name in ["Chart.yaml", "README.md", "values.yaml", "values.schema.json"]
            },
            names,
        )

    def test_lint_reports_no_problem(self):
        for case in CASES:
            report = helm.lint(CHART, values(case), strict=True)
            problems = [
                message
                for message in report["messages"]
                if message["error"] != "icon is recommended"
            ]
            self.assertEqual((problems, report["errors"]), ([], []), case)

    def test_versions_are_the_same(self):
        cargo = tomllib.loads((ROOT / "Cargo.toml").read_text())
        self.assertEqual(chart.metadata["appVersion"], cargo["workspace"]["package"]["version"])


class Values(unittest.TestCase):
    """Tests values.yaml, its schema, and the templates."""

    def test_the_schema_describes_every_value(self):
        def described(schema, path):
            self.assertIn("description", schema, path)
            for name, inner in schema.get("properties", {}).items():
                if "$ref" not in inner:
                    described(inner, (*path, name))

        described(SCHEMA, ())
        for name, definition in SCHEMA["definitions"].items():
            described(definition, (name,))
        described(SCHEMA["properties"]["hubs"]["additionalProperties"], ("hubs", "*"))

    def test_defaults_and_schema_have_the_same_values(self):
        def leaves(of, path=()):
            if isinstance(of, dict) and of and path not in free:
                for key, value in of.items():
                    yield from leaves(value, (*path, key))
            else:
                yield path

        # These values accept keys not named in the schema.
        free = {path for path, schema in properties() if schema.get("type") == "object"}
        in_schema = {path for path, _ in properties()} - {("global",)}
        self.assertEqual(set(leaves(DEFAULTS)), in_schema)

    def test_every_value_makes_a_difference(self):
        full, hpa = values("full"), values("hpa")
        # Values with an effect in only one of these cases.
        bases = {
            ("worker", "replicas"): values("minimal"),
            ("worker", "autoscaling", "metric"): hpa,
            ("amqp", "url"): values("minimal"),
            ("amqp", "ca", "secret"): hpa,
            ("redis", "existingSecret", "name"): values("secrets"),
            ("redis", "existingSecret", "key"): values("secrets"),
            ("worker", "autoscaling", "existingSecret", "key"): overlay(
                full, {"worker": {"autoscaling": {"existingSecret": {"name": "one"}}}}
            ),
            ("redis", "ca", "configMap"): hpa,
            ("redis", "sentinel", "url"): values("minimal"),
            ("redis", "sentinel", "existingSecret", "name"): values("secrets"),
            ("redis", "sentinel", "existingSecret", "key"): values("secrets"),
            ("api", "oidc", "ca", "secret"): overlay(
                full, {"api": {"oidc": {"ca": {"configMap": ""}}}}
            ),
            ("prometheus", "ca", "secret"): without(full, ("prometheus", "ca", "configMap")),
            ("prometheus", "token", "secret"): overlay(
                full, {"prometheus": {"user": "", "password": {"secret": ""}}}
            ),
            ("prometheus", "token", "key"): overlay(
                full,
                {
                    "prometheus": {
                        "user": "",
                        "password": {"secret": ""},
                        "token": {"secret": "one"},
                    }
                },
            ),
        }
        entry = SCHEMA["properties"]["hubs"]["additionalProperties"]
        of_hubs = [(("hubs", "eu", *path), schema) for path, schema in properties(entry)]
        bases |= {
            ("hubs", "eu", "connectionString"): overlay(
                without(full, ("hubs", "eu", "existingSecret")),
                {"hubs": {"eu": {"connectionString": "HostName=h;SharedAccessKey=k"}}},
            ),
            ("hubs", "eu", "host"): overlay(
                without(
                    without(full, ("hubs", "eu", "existingSecret")), ("hubs", "eu", "secondary")
                ),
                {"hubs": {"eu": {"host": "h", "auth": "azure_cli"}}},
            ),
            ("hubs", "eu", "auth"): overlay(
                without(
                    without(full, ("hubs", "eu", "existingSecret")), ("hubs", "eu", "secondary")
                ),
                {"hubs": {"eu": {"host": "h", "auth": "azure_cli"}}},
            ),
            ("hubs", "eu", "ca", "key"): overlay(full, {"hubs": {"eu": {"ca": {"secret": "one"}}}}),
        }
        tried = 0
        for path, schema in [*properties(), *of_hubs]:
            if path == ("global",):
                continue
            base = bases.get(path, full)
            with self.subTest(".".join(path)):
                changed = overlay(
                    base, at(path, other(schema, lookup(chart.merge_values(base), path)))
                )
                self.assertTrue(render(base) != render(changed), "nothing is different")
                tried += 1
        self.assertGreater(tried, 90)

    def test_bad_values_are_refused(self):
        key = "HostName=h;SharedAccessKey=x"
        cases = [
            ({"imaeg": {}}, "at '': additional properties 'imaeg' not allowed"),
            ({"worker": {"replicas": "3"}}, "at '/worker/replicas': got string, want integer"),
            (
                {"worker": {"terminationGracePeriodSeconds": 15}},
                "at '/worker/terminationGracePeriodSeconds': minimum: got 15, want 20",
            ),
            ({"worker": {"slots": 65}}, "at '/worker/slots': maximum: got 65, want 64"),
            (
                {"worker": {"autoscaling": {"kind": "vpa"}}},
                "at '/worker/autoscaling/kind': value must be one of 'keda', 'hpa'",
            ),
            (
                {"worker": {"autoscaling": {"minReplicas": 5, "maxReplicas": 4}}},
                "worker.autoscaling: minReplicas (5) is above maxReplicas (4)",
            ),
            ({"security": {"runAsUser": 0}}, "at '/security/runAsUser': minimum: got 0, want 1"),
            ({"image": {"tag": "a b"}}, "at '/image/tag': 'a b' does not match pattern"),
            (
                {"image": {"digest": "sha256:12"}},
                "at '/image/digest': 'sha256:12' does not match pattern",
            ),
            ({"http": {"port": 80}}, "at '/http/port': minimum: got 80, want 1,024"),
            (
                {"api": {"enabled": True}},
                "api.tokens.secret: name the secret with the tokens, or an issuer",
            ),
            (
                {"api": {"enabled": True, "oidc": {"issuer": "https://i"}}},
                "api.oidc.audience: say whom",
            ),
            (
                {"api": {"enabled": True, "oidc": {"issuer": "https://i", "audience": "a"}}},
                "api.oidc.roles: give values for a role",
            ),
            (
                {"api": {"oidc": {"keysUrl": "http://i"}}},
                "at '/api/oidc/keysUrl': 'http://i' does not match pattern",
            ),
            (
                {"api": {"oidc": {"ca": {"secret": "a", "configMap": "b"}}}},
                "api.oidc.ca: give only one of secret and configMap",
            ),
            (
                {"api": {"enabled": True, "port": 8080, "tokens": {"secret": "t"}}},
                "api.port and http.port are both 8080",
            ),
            ({"prometheus": {"token": {"secret": "t"}}}, "prometheus.url: say where it is"),
            (
                {"prometheus": {"url": "http://p", "token": {"secret": "t"}, "user": "ann"}},
                "prometheus: give only one of a token, and user and password",
            ),
            (
                {"prometheus": {"url": "http://p", "user": "ann"}},
                "prometheus: give both user and password.secret",
            ),
            (
                {"settings": {"otlp": {"password": "hidden"}}},
                "settings.otlp.password would be readable by all",
            ),
            (
                {"prometheus": {"url": "http://me:hidden@prometheus"}},
                "prometheus.url: must begin with http:// or https://",
            ),
            (
                {"prometheus": {"url": "prometheus:9090"}},
                "prometheus.url: must begin with http:// or https://",
            ),
            (
                {"settings": {"prometheus": {"token": "hidden"}}},
                "settings.prometheus.token would be readable by all",
            ),
            (
                {"networkPolicy": {"redis": {"ports": []}}},
                "at '/networkPolicy/redis/ports': minItems: got 0, want 1",
            ),
            ({"settings": {"hubz": {}}}, "value must be one of 'state', 'log', 'worker'"),
            (
                {"settings": {"amqp": {"url": "amqp://x"}}},
                "settings.amqp.url would be readable by all",
            ),
            (
                {"settings": {"redis": {"sentinel_url": "redis://x:1"}}},
                "settings.redis.sentinel_url would be readable by all",
            ),
            (
                {"settings": {"otlp": {"headers": "a=b"}}},
                "settings.otlp.headers would be readable by all",
            ),
            (
                {"settings": {"otlp": {"token": "hidden"}}},
                "settings.otlp.token would be readable by all",
            ),
            (
                {"settings": {"prometheus": {"headers": "a=b"}}},
                "settings.prometheus.headers would be readable by all",
            ),
            (
                {"settings": {"hubs": {"main": {"connection_string": key}}}},
                "settings.hubs.main.connection_string would be readable by all",
            ),
            ({"amqp": {"url": ""}}, "amqp: give one of amqp.url and amqp.existingSecret.name"),
            (
                {"redis": {"existingSecret": {"name": "redis"}}},
                "redis: give only one of redis.url and redis.existingSecret.name",
            ),
            (
                {
                    "redis": {
                        "sentinel": {
                            "url": "redis://hidden@s:26379",
                            "existingSecret": {"name": "s"},
                        }
                    }
                },
                "redis.sentinel: give only one",
            ),
            (
                {"redis": {"cluster": True, "sentinel": {"url": "redis://hidden@s:26379"}}},
                "redis.sentinel: a cluster has no sentinels",
            ),
            (
                {"redis": {"sentinel": {"url": "s:26379 hidden"}}},
                "redis.sentinel.url: must begin with redis:// or rediss://",
            ),
            ({"amqp": {"url": "https://hidden"}}, "amqp.url: must begin with amqp:// or amqps://"),
            (
                {
                    "amqp": {"url": "amqp://:hidden@a,amqp://:hidden@b"},
                    "worker": {"autoscaling": {"enabled": True}},
                },
                "worker.autoscaling.existingSecret.name: amqp.url has several addresses",
            ),
            (
                {"redis": {"ca": {"secret": "a", "configMap": "b"}}},
                "redis.ca: give only one of secret and configMap",
            ),
            ({"hubs": None}, "hubs: name at least one"),
            (
                {"hubs": {"no spaces": {"connectionString": key}}},
                "'no spaces' does not match pattern",
            ),
            (
                {"hubs": {"eu": {"tier": "S3"}}},
                "hubs.eu: give one of connectionString, existingSecret and host",
            ),
            ({"hubs": {"eu": {"host": "h"}}}, "hubs.eu: give host and auth together"),
            (
                {"hubs": {"eu": {"host": "h", "auth": "azure_cli", "secondary": {"name": "s"}}}},
                "hubs.eu: secondary is for hubs with a connection string",
            ),
            (
                {"hubs": {"main": {"existingSecret": {"name": "hub"}}}},
                "hubs.main: give only one of connectionString, existingSecret and host",
            ),
            (
                {"hubs": {"main": {"connectionString": "hidden"}}},
                "hubs.main.connectionString: must be like HostName=",
            ),
            (
                {"hubs": {"main": {"tier": "B1"}}},
                "at '/hubs/main/tier': value must be one of 'F1', 'S1', 'S2', 'S3'",
            ),
            (
                {"hubs": {"main": {"tear": "S1"}}},
                "at '/hubs/main': additional properties 'tear' not allowed",
            ),
        ]
        for change, message in cases:
            with self.subTest(message):
                with self.assertRaises(helm.HelmError) as refused:
                    # In the order of an installation: first the schema, then the templates.
                    given = overlay(values("minimal"), change)
                    chart.validate_schema(given)
                    render(given)
                self.assertIn(message, str(refused.exception))
                self.assertNotIn("hidden", str(refused.exception))

    def test_the_readme_names_existing_values(self):
        readme = (CHART / "README.md").read_text()
        names = {
            part
            for part in re.findall(r"`([a-zA-Z]+(?:\.[a-zA-Z]+)*)`", readme)
            if part.split(".")[0] in DEFAULTS
        }
        self.assertGreater(len(names), 10)
        for name in names:
            path = tuple(name.split("."))
            if path[0] != "hubs":
                lookup(DEFAULTS, path, strict=True)


def without(of, path):
    """Returns values without one entry."""
    result = copy.deepcopy(of)
    del lookup(result, path[:-1])[path[-1]]
    return result


def lookup(of, path, strict=False):
    for key in path:
        of = of[key] if strict else (of or {}).get(key)
    return of


def other(schema, now):
    """Returns an allowed value other than the current value."""
    if "examples" in schema:
        return next(value for value in schema["examples"] if value != now)
    if "enum" in schema:
        return next(value for value in schema["enum"] if value != now)
    if schema["type"] == "boolean":
        return not now
    number = (now or schema.get("minimum", 0)) + 1
    return int(number) if number <= schema.get("maximum", number) else int(number) - 2


if __name__ == "__main__":
    unittest.main()
