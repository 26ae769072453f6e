//! The HTTP API on test doubles: permissions, answers, and error messages.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode, header};
use serde_json::{Value, json};
use tower::ServiceExt as _;
use twincast_core::hub::{HubLimits, Tier};
use twincast_core::ids::BatchId;
use twincast_core::outcome::{ClassCounts, Outcome};
use twincast_core::permits::PermitRequest;
use twincast_core::plan::{Batch, DeviceList, TagGroup};
use twincast_core::ports::{
    Batches as _, Clock, Limiter as _, RolloutRegistry, Rollouts as _, Skip, StoreError, Tally,
};
use twincast_core::rollout::{Adding, Event};
use twincast_core::trace::Tracer;
use twincast_embedded::InProcessQueue;
use twincast_oidc::{Issuer, IssuerConfig, KeyLocation, TokenSigner};
use twincast_orchestrator::command_executor::CommandExecutor;
use twincast_orchestrator::http::auth::oidc::Oidc;
use twincast_orchestrator::http::auth::tokens::{TokensFile, new_token};
use twincast_orchestrator::http::auth::{Access, Caller, KnownTokens, Role};
use twincast_orchestrator::http::{Api, DeadLetters, REQUEST_TIMEOUT, openapi};
use twincast_orchestrator::{HubHandle, Hubs};
use twincast_testkit::{MemoryStore, RuntimeClock, ScriptedHub, build};

struct NoLetters;

#[async_trait]
impl DeadLetters for NoLetters {
    async fn list(&self, most: usize) -> Result<Vec<Value>, String> {
        assert_eq!(most, 100);
        Ok(vec![json!({ "id": "1", "cause": "unreadable" })])
    }
}

struct Bench {
    store: MemoryStore,
    access: Arc<Access>,
    router: Router,
    /// By role, in the order of [`Role::ALL`].
    tokens: Vec<String>,
}

impl Bench {
    async fn new() -> Self {
        let (tokens, lines): (Vec<_>, Vec<_>) = Role::ALL
            .into_iter()
            .map(|role| new_token(&format!("{}-ann", role.as_str()), role))
            .unzip();
        let (bench, _) = Self::of_lines(&lines.join("\n")).await;
        Self { tokens, ..bench }
    }

    /// A bench with a tokens file of these lines.
    async fn of_lines(lines: &str) -> (Self, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), lines).unwrap();
        let ours = TokensFile::open(file.path().to_owned()).await.unwrap();
        let access = Access::Tokens(KnownTokens {
            tokens: Some(ours),
            oidc: None,
        });
        (Self::with(access), file)
    }

    /// A bench that accepts the tokens of an issuer, too.
    async fn of_issuer() -> (Self, TokenSigner) {
        let signer = TokenSigner::new("k");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), TokenSigner::key_set(&[&signer]).to_string()).unwrap();
        let issuer = Issuer::new(IssuerConfig {
            issuer: "https://login.example.com".to_owned(),
            audience: "twincast".to_owned(),
            keys: KeyLocation::File(file.path().to_owned()),
        })
        .unwrap();
        issuer.load().await.unwrap();
        let value = |role: Role| (format!("fleet-{}", role.as_str()), role);
        let oidc = Oidc {
            issuer,
            name_claim: "preferred_username".to_owned(),
            roles_claim: "realm_access.roles".to_owned(),
            roles: Role::ALL.into_iter().map(value).collect(),
        };
        let access = Access::Tokens(KnownTokens {
            tokens: None,
            oidc: Some(oidc),
        });
        let token = |role: Role| {
            let value = format!("fleet-{}", role.as_str());
            signer.sign(&claims(&["offline_access", &value]))
        };
        let bench = Self {
            tokens: Role::ALL.into_iter().map(token).collect(),
            ..Self::with(access)
        };
        (bench, signer)
    }

    fn with(access: Access) -> Self {
        Self::on(HubLimits::unlimited(), access)
    }

    fn on(limits: HubLimits, access: Access) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(RuntimeClock::default());
        let store = MemoryStore::new(Arc::clone(&clock));
        let hub = build::hub("a");
        let handle = HubHandle {
            host: build::host("a"),
            hub: Arc::new(ScriptedHub::of(30)),
            limits,
        };
        let executor = CommandExecutor {
            store: Arc::new(store.clone()),
            registry: Some(Arc::new(store.clone()) as Arc<dyn RolloutRegistry>),
            hubs: [hub.clone()].into(),
            has_metric_source: false,
            tracer: Tracer::default(),
            clock,
        };
        let access = Arc::new(access);
        let api = Api {
            store: Arc::new(store.clone()),
            queue: Some(Arc::new(InProcessQueue::new(10))),
            limits: [(hub.clone(), limits)].into(),
            hubs: Hubs::from([(hub, handle)]),
            executor: Arc::new(executor),
            dead_letters: Some(Arc::new(NoLetters)),
            access: Arc::clone(&access),
            status: Arc::default(),
            request_timeout: REQUEST_TIMEOUT,
        };
        Self {
            store,
            access,
            router: api.router(),
            tokens: Vec::new(),
        }
    }

    fn token(&self, role: Role) -> &str {
        let index = Role::ALL.iter().position(|of| *of == role).unwrap();
        &self.tokens[index]
    }

    async fn send(&self, request: Request<Body>) -> (StatusCode, String, String) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let content_type = response.headers().get(header::CONTENT_TYPE);
        let content_type = content_type
            .map_or("", |value| value.to_str().unwrap())
            .to_owned();
        let body = to_bytes(response.into_body(), 10_000_000).await.unwrap();
        (
            status,
            content_type,
            String::from_utf8(body.to_vec()).unwrap(),
        )
    }

    /// Sends a request as an admin. The answer must be JSON.
    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let request = request(method, path, Some(self.token(Role::Admin)), body);
        let (status, content_type, text) = self.send(request).await;
        let kind = if status.is_success() {
            "application/json"
        } else {
            "application/problem+json"
        };
        assert_eq!(content_type, kind, "{path}: {text}");
        (status.as_u16(), serde_json::from_str(&text).unwrap())
    }

    async fn get(&self, path: &str) -> Value {
        let (status, value) = self.ask(Method::GET, path, None).await;
        assert_eq!(status, 200, "{path}: {value}");
        value
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.ask(Method::POST, path, Some(body)).await
    }
}

#[tokio::test]
async fn responses_carry_trace_ids_and_rollouts_keep_the_trace() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let bench = Bench::new().await;
    let id = async |request: Request<Body>| {
        let response = bench.router.clone().oneshot(request).await.unwrap();
        response.headers()["x-request-id"]
            .to_str()
            .unwrap()
            .to_owned()
    };
    let token = bench.token(Role::Admin);
    let own = id(request(Method::GET, "/api/v1/nothing", None, None)).await;
    assert_eq!(own.len(), 32);
    let again = id(request(Method::GET, "/api/v1/whoami", Some(token), None)).await;
    assert_ne!(own, again);
    let spec = json!({"name": "r", "target": {"all": true}, "message": {"body": {"text": "hi"}}});
    let mut start = request(Method::POST, "/api/v1/rollouts", Some(token), Some(spec));
    let caller = format!("00-{TRACE}-00f067aa0ba902b7-01");
    start
        .headers_mut()
        .insert("traceparent", caller.parse().unwrap());
    assert_eq!(id(start).await, TRACE);
    let rollout = bench
        .store
        .rollout(&build::name("r"))
        .await
        .unwrap()
        .unwrap();
    let root = rollout.trace.unwrap();
    assert_eq!(root.trace.to_string(), TRACE);
    assert!(
        root.sampled && !root.to_string().contains("00f067aa0ba902b7"),
        "{root}"
    );
}

/// The claims of a valid token from the issuer.
fn claims(roles: &[&str]) -> Value {
    json!({
        "iss": "https://login.example.com", "aud": ["account", "twincast"], "exp": 4_000_000_000_u64,
        "sub": "7f3a", "preferred_username": "ann@example.com", "realm_access": { "roles": roles },
    })
}

fn request(method: Method, path: &str, token: Option<&str>, body: Option<Value>) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    match body {
        Some(body) => request
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string())),
        None => request.body(Body::empty()),
    }
    .unwrap()
}

fn spec(name: &str) -> Value {
    json!({ "name": name, "target": { "all": true }, "message": { "body": { "text": "hi" } } })
}

/// A valid body for the operation.
fn body_of(path: &str) -> Value {
    match path.rsplit('/').next().unwrap() {
        "rollouts" | "plan" => spec("new"),
        "promote" => json!({ "stage": "s", "reason": "known" }),
        _ => json!({}),
    }
}

/// Tests every role on every operation of the document: a permitted role must not be denied.
#[tokio::test]
async fn roles_are_enforced_on_every_route() {
    let document = openapi();
    let mut seen = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let concrete = path.replace("{name}", "there-is-none");
            let concrete = concrete.replace("{device}", "nobody");
            let body = (method == Method::POST).then(|| body_of(path));
            let decides = ["approve", "reject", "promote"]
                .iter()
                .any(|it| path.ends_with(it));
            let expected = match (method == Method::GET, decides) {
                (true, _) => [true; 4],
                _ if path.ends_with("delete") => [false, false, false, true],
                (false, true) => [false, false, true, true],
                (false, false) => [false, true, false, true],
            };
            for bench in [Bench::new().await, Bench::of_issuer().await.0] {
                for (role, may) in Role::ALL.into_iter().zip(expected) {
                    let token = Some(bench.token(role));
                    let request = request(method.clone(), &concrete, token, body.clone());
                    let (status, _, text) = bench.send(request).await;
                    assert!(!status.is_server_error(), "{method} {path}: {text}");
                    assert_ne!(status, StatusCode::UNAUTHORIZED, "{method} {path}: {text}");
                    let let_in = status != StatusCode::FORBIDDEN;
                    assert_eq!(let_in, may, "{role:?}: {method} {path}: {text}");
                }
                for token in [None, Some("twc_wrong"), Some("")] {
                    let request = request(method.clone(), &concrete, token, body.clone());
                    let (status, content_type, text) = bench.send(request).await;
                    assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path}: {text}");
                    assert_eq!(content_type, "application/problem+json");
                }
            }
            seen += 1;
        }
    }
    assert!(seen >= 22, "{seen}");
}

#[tokio::test]
async fn token_claims_determine_name_and_role() {
    let (bench, signer) = Bench::of_issuer().await;
    let ask = async |token: &str| {
        let request = request(Method::GET, "/api/v1/whoami", Some(token), None);
        let response = bench.router.clone().oneshot(request).await.unwrap();
        let challenge = response.headers().get(header::WWW_AUTHENTICATE);
        let challenge = challenge.map(|value| value.to_str().unwrap().to_owned());
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 10_000).await.unwrap();
        let answer: Value = serde_json::from_slice(&body).unwrap();
        (status, challenge, answer)
    };
    let roles: [(&[&str], _); 4] = [
        (&["fleet-viewer", "fleet-operator"], "operator"),
        (&["fleet-approver", "fleet-operator"], "admin"),
        (&["fleet-approver", "fleet-approver", "x"], "approver"),
        (&["fleet-admin", "fleet-viewer"], "admin"),
    ];
    for (roles, role) in roles {
        let (status, _, who) = ask(&signer.sign(&claims(roles))).await;
        let expected = json!({ "name": "ann@example.com", "role": role });
        assert_eq!((status, who), (200, expected));
    }
    let with = |claim: &str, value: Value| {
        let mut claims = claims(&["fleet-viewer"]);
        claims[claim] = value;
        signer.sign(&claims)
    };
    let (_, _, who) = ask(&with("preferred_username", Value::Null)).await;
    assert_eq!(who["name"], "7f3a", "the subject");

    for roles in [
        json!([]),
        json!(["operator"]),
        json!(null),
        json!({ "fleet-admin": 1 }),
    ] {
        let token = with("realm_access", json!({ "roles": roles }));
        let (status, challenge, problem) = ask(&token).await;
        assert_eq!((status, challenge), (403, None), "{problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(
            detail.starts_with("ann@example.com has no role"),
            "{detail}"
        );
    }
    let unknown = "the token is not known";
    let bad = [
        ("a.b.c".to_owned(), unknown),
        (
            TokenSigner::new("k").sign(&claims(&["fleet-admin"])),
            unknown,
        ),
        (with("exp", json!(1_700_000_000)), "the token has expired"),
        (
            with("nbf", json!(3_999_999_999_u64)),
            "the token is not valid yet",
        ),
        (
            with("iss", json!("https://other")),
            "the token is from another issuer",
        ),
        (
            with("aud", json!("account")),
            "the token is for another audience",
        ),
        (
            with("preferred_username", json!("")),
            "the token does not name its bearer",
        ),
        (
            with("preferred_username", json!("a\nb")),
            "the token does not name its bearer",
        ),
        (
            with("preferred_username", json!("x".repeat(129))),
            "the token does not name its bearer",
        ),
    ];
    for (token, says) in bad {
        let (status, challenge, problem) = ask(&token).await;
        let invalid = Some("Bearer error=\"invalid_token\"".to_owned());
        assert_eq!((status, challenge), (401, invalid), "{problem}");
        assert_eq!(problem["detail"], says, "{problem}");
    }
}

#[tokio::test]
async fn a_rollout_is_started_read_and_changed() {
    let bench = Bench::new().await;
    let (status, answer) = bench.post("/api/v1/rollouts", spec("r")).await;
    assert_eq!(
        (status, &answer["changed"]),
        (200, &json!(true)),
        "{answer}"
    );
    let (_, again) = bench.post("/api/v1/rollouts", spec("r")).await;
    assert_eq!(again["changed"], false);
    let mut other = spec("r");
    other["message"]["body"]["text"] = json!("ho");
    let (status, problem) = bench.post("/api/v1/rollouts", other).await;
    assert_eq!(
        (status, &problem["cause"]),
        (409, &json!("conflict")),
        "{problem}"
    );

    let (status, answer) = bench
        .post(
            "/api/v1/rollouts/r/abort",
            json!({ "reason": "wrong build" }),
        )
        .await;
    assert_eq!(
        (status, &answer["rollouts"][0]["phase"]),
        (200, &json!("aborting")),
        "{answer}"
    );
    let detail = bench.get("/api/v1/rollouts/r").await;
    assert_eq!(
        detail["reason"], "wrong build (abort by admin-ann)",
        "the principal and the reason"
    );
    assert_eq!(detail["spec"]["name"], "r");
    assert_eq!(detail["history"][1]["event"], "abort_requested", "{detail}");
    let (status, problem) = bench.post("/api/v1/rollouts/r/pause", json!({})).await;
    assert_eq!(
        (status, &problem["cause"]),
        (409, &json!("not_possible")),
        "{problem}"
    );

    for name in ["a", "b", "c"] {
        bench.post("/api/v1/rollouts", spec(name)).await;
    }
    let page = bench.get("/api/v1/rollouts?limit=2").await;
    let names = |page: &Value| -> Vec<String> {
        let rows = page["rollouts"].as_array().unwrap();
        rows.iter()
            .map(|row| row["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        (names(&page), &page["next"]),
        (vec!["a".to_owned(), "b".to_owned()], &json!("b"))
    );
    let rest = bench.get("/api/v1/rollouts?limit=2&after=b").await;
    assert_eq!(
        (names(&rest), rest.get("next")),
        (vec!["c".to_owned(), "r".to_owned()], None)
    );
    assert_eq!(
        names(&bench.get("/api/v1/rollouts?phase=aborting").await),
        ["r"]
    );
    let first = bench.store.rollout(&build::name("a")).await.unwrap();
    build::apply(
        &bench.store,
        &first.unwrap(),
        Event::PlanningFailed {
            reason: "no device".into(),
        },
    )
    .await;
    for (ended, expected) in [(true, vec!["a"]), (false, vec!["b", "c", "r"])] {
        let page = bench.get(&format!("/api/v1/rollouts?ended={ended}")).await;
        assert_eq!(names(&page), expected, "{ended}");
    }

    let (_, stopped) = bench
        .post("/api/v1/stop-all", json!({ "reason": "fire" }))
        .await;
    assert_eq!(stopped["changed"], true);
    let (_, lifted) = bench.post("/api/v1/resume-all", json!({})).await;
    assert_eq!(lifted["changed"], true);
}

#[tokio::test]
async fn a_request_with_a_key_is_done_once() {
    let bench = Bench::new().await;
    bench.post("/api/v1/rollouts", spec("r")).await;
    let post = async |path: &str, key: &str| {
        let mut request = request(
            Method::POST,
            path,
            Some(bench.token(Role::Admin)),
            Some(json!({ "reason": "smoke" })),
        );
        let headers = request.headers_mut();
        headers.insert("idempotency-key", key.parse().unwrap());
        let (status, _, text) = bench.send(request).await;
        (
            status.as_u16(),
            serde_json::from_str::<Value>(&text).unwrap(),
        )
    };
    // As in the header's draft, and as sent by most clients.
    for key in ["k-1", "\"k-1\""] {
        let (status, answer) = post("/api/v1/rollouts/r/abort", key).await;
        assert_eq!(
            (status, &answer["changed"]),
            (200, &json!(true)),
            "{answer}"
        );
    }
    let (_, plain) = bench.post("/api/v1/rollouts/r/abort", json!({})).await;
    assert_eq!(plain["changed"], false);
    for (path, key, says) in [
        (
            "/api/v1/rollouts/r/resume",
            "k-1",
            "was already used for another command",
        ),
        (
            "/api/v1/rollouts/r/abort",
            "a b",
            "the header idempotency-key: command key",
        ),
        ("/api/v1/rollouts/r/abort", "\"a", "1 to 128 letters"),
        ("/api/v1/stop-all", "k-2", "key is not allowed"),
    ] {
        let (status, problem) = post(path, key).await;
        assert_eq!(status, 422, "{path}: {problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(says), "{path}: {detail}");
    }
    let stopped = bench.store.halted().await.unwrap();
    assert!(stopped.is_none(), "{stopped:?}");
}

#[tokio::test]
async fn plan_requests_do_not_store_a_rollout() {
    let bench = Bench::new().await;
    let (status, plan) = bench.post("/api/v1/plan", spec("r")).await;
    assert_eq!(
        (status, &plan["plan"]["devices"]),
        (200, &json!(30)),
        "{plan}"
    );
    assert_eq!(bench.get("/api/v1/rollouts").await["rollouts"], json!([]));
}

#[tokio::test(start_paused = true)]
async fn devices_come_in_pages_and_as_streams() {
    let bench = Bench::new().await;
    let batches = vec![build::batch(0, 5), build::batch(1, 150), build::batch(2, 5)];
    let rollout = build::running(&bench.store, "r", batches).await;
    let name = rollout.spec.name;
    let lease = build::leased(&bench.store, &name, 1, "w").await;
    let reports: Vec<_> = (0..120)
        .map(|index| build::report(index, Outcome::Enqueued))
        .collect();
    bench
        .store
        .record(&lease, &reports, build::TTL)
        .await
        .unwrap();

    let mut all = Vec::new();
    let mut path = "/api/v1/rollouts/r/devices?limit=50".to_owned();
    loop {
        let page = bench.get(&path).await;
        all.extend(page["devices"].as_array().unwrap().clone());
        let Some(next) = page["next"].as_str() else {
            break;
        };
        path = format!("/api/v1/rollouts/r/devices?limit=50&after={next}");
    }
    assert_eq!(all.len(), 160);
    let sent = all
        .iter()
        .filter(|row| row["outcome"] == "enqueued")
        .count();
    assert_eq!(sent, 120);

    let token = bench.token(Role::Viewer);
    let export = |how: &str| {
        request(
            Method::GET,
            &format!("/api/v1/rollouts/r/export{how}"),
            Some(token),
            None,
        )
    };
    let (status, content_type, text) = bench.send(export("")).await;
    assert_eq!(
        (status, &*content_type),
        (StatusCode::OK, "application/x-ndjson")
    );
    let rows: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows, all, "the stream and the pages have the same rows");
    let (_, _, text) = bench.send(export("?format=csv&outcome=enqueued")).await;
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 121);
    assert_eq!(
        lines[0],
        "device,hub,group,stage,batch,index,outcome,class,code,error,message_id"
    );
    assert!(
        lines[1].ends_with(",all,1,0,enqueued,sent,,,r.0.0.1.0.1"),
        "{}",
        lines[1]
    );

    let page = bench.get("/api/v1/rollouts/r/batches?limit=2").await;
    assert_eq!(
        (page["batches"].as_array().unwrap().len(), &page["next"]),
        (2, &json!("1"))
    );
    assert_eq!(
        page["batches"][1]["counts"],
        json!({ "pending": 30, "enqueued": 120 })
    );
    assert!(page["batches"][1]["held_until"].is_string());
    assert_eq!(page["batches"][1]["stage"], all[0]["stage"]);
}

#[tokio::test]
async fn groups_of_a_shared_batch_are_distinguished() {
    let bench = Bench::new().await;
    let group = |site: u32| TagGroup(vec![("site".into(), Some(site.to_string()))]);
    let mut batch = build::batch(0, 64);
    batch.header.group = group(0);
    batch.header.further_groups = (1..32).map(|site| (2 * site, group(site))).collect();
    let rollout = build::running(&bench.store, "r", vec![batch]).await;
    let lease = build::leased(&bench.store, &rollout.spec.name, 0, "w").await;
    let reports = [
        build::report(3, Outcome::Enqueued),
        build::report(4, Outcome::NotFound),
    ];
    let recorded = bench.store.record(&lease, &reports, build::TTL).await;
    recorded.unwrap();
    let outcomes = bench.get("/api/v1/rollouts/r/outcomes").await;
    let groups = outcomes["groups"].as_array().unwrap();
    let counts = |site: u32| {
        let name = format!("site={site}");
        let mut named = groups.iter().filter(|group| group["group"] == *name);
        named.next().map(|group| group["counts"].clone())
    };
    assert_eq!(counts(0), Some(json!({ "pending": 2 })));
    assert_eq!(counts(1), Some(json!({ "pending": 1, "enqueued": 1 })));
    assert_eq!(counts(2), Some(json!({ "pending": 1, "not_found": 1 })));
    assert_eq!((groups.len(), &outcomes["other_groups"]), (20, &json!(24)));
    assert_eq!(outcomes["failures"][0]["samples"][0], "device-0-000004");

    let page = bench.get("/api/v1/rollouts/r/batches").await;
    assert_eq!(page["batches"][0]["group"], "site=0 and 31 more groups");
    let path = "/api/v1/rollouts/r/devices/device-0-000004";
    let explained = bench.get(path).await;
    assert_eq!(explained["places"][0]["group"], "site=2");
    let devices = bench.get("/api/v1/rollouts/r/devices").await;
    assert_eq!(devices["devices"][5]["group"], "site=2");
    assert_eq!(devices["devices"][63]["group"], "site=31");
}

#[tokio::test]
async fn outcomes_have_reasons_and_a_device_is_explained() {
    let bench = Bench::new().await;
    let rollout = build::running(&bench.store, "r", vec![build::batch(0, 5)]).await;
    let lease = build::leased(&bench.store, &rollout.spec.name, 0, "w").await;
    let reports = [
        build::report(0, Outcome::Enqueued),
        build::report(3, Outcome::NotFound),
    ];
    let recorded = bench.store.record(&lease, &reports, build::TTL).await;
    recorded.unwrap();
    let outcomes = bench.get("/api/v1/rollouts/r/outcomes").await;
    let counts = json!({ "pending": 3, "not_found": 1, "enqueued": 1 });
    let by_class = json!({
        "applied": 0, "taken": 0, "sent": 1, "silent": 0, "pending": 3, "not_applied": 0, "not_taken": 0, "not_sent": 1,
        "skipped": 0,
    });
    assert_eq!(
        outcomes,
        json!({
            "groups": [{ "hub": "a", "group": "all", "counts": counts, "by_class": by_class }],
            "other_groups": 0,
            "failures": [{
                "outcome": "not_found", "class": "not_sent", "reason": "the device is unknown to \
                     the hub, or disabled",
                "devices": 1, "samples": ["device-0-000003"],
            }],
        })
    );

    let view = bench.get("/api/v1/rollouts/r").await;
    for one in [&view, &view["stages"][0], &view["hubs"]["a"]] {
        assert_eq!(
            (&one["counts"], &one["by_class"]),
            (&counts, &by_class),
            "{one}"
        );
    }
    let failed = "/api/v1/rollouts/r/devices?class=not_sent,not_taken";
    let failed = bench.get(failed).await["devices"].clone();
    assert_eq!(failed.as_array().unwrap().len(), 1);
    assert_eq!(failed[0]["class"], "not_sent");
    for (query, says) in [
        ("class=lost", "is not a class"),
        ("class=sent&outcome=enqueued", "cannot be combined"),
    ] {
        let path = format!("/api/v1/rollouts/r/devices?{query}");
        let (status, problem) = bench.ask(Method::GET, &path, None).await;
        let detail = problem["detail"].as_str().unwrap();
        assert!(
            status == StatusCode::BAD_REQUEST && detail.contains(says),
            "{problem}"
        );
    }

    let path = "/api/v1/rollouts/r/devices/device-0-000003";
    let explained = bench.get(path).await;
    let place = &explained["places"][0];
    assert_eq!(
        (&place["batch"], &place["index"], &place["outcome"]),
        (&json!(0), &json!(3), &json!("not_found")),
        "{explained}"
    );
    assert_eq!(place["stage"]["reason"], "it takes all devices");
    let message_id = place["attempts"][0]["message_id"].clone();
    let devices = bench.get("/api/v1/rollouts/r/devices").await;
    assert_eq!(devices["devices"][3]["message_id"], message_id);
    let path = "/api/v1/rollouts/r/devices/device%2B0";
    let (status, problem) = bench.ask(Method::GET, path, None).await;
    assert_eq!(
        (status, &problem["detail"]),
        (
            404,
            &json!("device device+0 is not in the plan of rollout r; possible reasons")
        ),
        "{problem}"
    );
    assert!(problem["details"].is_array() && problem["hint"].is_string());
}

/// A batch of one device.
fn batch_of(device: &str, id: u32, hub: &str, stage: u16) -> Batch {
    let mut devices = DeviceList::default();
    devices.push(&build::device(device));
    Batch {
        devices,
        ..build::batch_on(id, hub, stage, 1)
    }
}

#[tokio::test]
async fn a_rejoined_device_is_explained_per_entry() {
    let bench = Bench::new().await;
    let planned = [("a", 0), ("b", 1), ("c", 2)];
    let batches = planned.map(|(hub, id)| batch_of("d", id, hub, 0));
    let rollout = build::running_continuous(&bench.store, "r", batches.to_vec()).await;
    let name = &rollout.spec.name;
    let scanning = build::apply(&bench.store, &rollout, Event::ScanStarted).await;
    let scan = scanning.scans.unwrap().newest;
    for (hub, left, joins) in [("a", 0, 3), ("b", 1, 4)] {
        let devices = vec![0];
        let skip = Skip::Departed { scan, devices };
        let skipped = bench.store.skip(name, BatchId(left), &skip).await.unwrap();
        assert_eq!(skipped, None);
        let joined = vec![batch_of("d", joins, hub, 1)];
        let added = bench.store.add_batches(name, Adding::Scan(scan), joined);
        added.await.unwrap();
    }
    let explained = bench.get("/api/v1/rollouts/r/devices/d").await;
    let places = explained["places"].as_array().unwrap().iter();
    let places = places.map(|place| {
        let of = [&place["entry"], &place["entries"]].map(|n| n.as_u64().unwrap());
        let [hub, stage, outcome] = [&place["hub"], &place["stage"]["name"], &place["outcome"]]
            .map(|text| text.as_str().unwrap());
        (hub, of, stage, outcome)
    });
    assert_eq!(
        places.collect::<Vec<_>>(),
        [
            ("a", [1, 2], "all", "skipped"),
            ("a", [2, 2], "late", "pending"),
            ("b", [1, 2], "all", "skipped"),
            ("b", [2, 2], "late", "pending"),
            ("c", [1, 1], "all", "pending"),
        ]
    );
}

#[tokio::test]
async fn an_incomplete_plan_is_not_counted() {
    let bench = Bench::new().await;
    let planning = build::planning(&bench.store, "r").await;
    let batches = vec![build::batch(0, 8)];
    let by = Adding::Plan(planning.plan_id);
    let added = bench.store.add_batches(&planning.spec.name, by, batches);
    added.await.unwrap();
    let shows_nothing = async || {
        let rollout = bench.get("/api/v1/rollouts/r").await;
        let none = json!({});
        let counts = (&rollout["counts"], &rollout["hubs"], &rollout["stages"]);
        assert_eq!(counts, (&none, &none, &json!([])), "{rollout}");
        let list = bench.get("/api/v1/rollouts").await;
        let (_, answer) = bench.post("/api/v1/rollouts", spec("r")).await;
        for state in [&rollout, &list["rollouts"][0], &answer["rollouts"][0]] {
            assert_eq!(state["devices"], 0, "{state}");
            let by_class = serde_json::from_value::<ClassCounts>(state["by_class"].clone());
            assert_eq!(by_class.unwrap(), ClassCounts::default(), "{state}");
        }
        let outcomes = bench.get("/api/v1/rollouts/r/outcomes").await;
        assert_eq!(outcomes["groups"], json!([]));
        for part in ["devices", "batches"] {
            let page = bench.get(&format!("/api/v1/rollouts/r/{part}")).await;
            assert_eq!(page[part], json!([]));
        }
        let viewer = Some(bench.token(Role::Viewer));
        let export = request(Method::GET, "/api/v1/rollouts/r/export", viewer, None);
        assert_eq!(bench.send(export).await.2, "");
    };
    shows_nothing().await;
    let reason = "the hub does not understand it".to_owned();
    let failed = build::apply(&bench.store, &planning, Event::PlanningFailed { reason }).await;
    let kept = bench.store.tallies(&failed.spec.name).await.unwrap();
    assert_eq!(Tally::sum(&kept).total(), 8, "the store keeps the tallies");
    let shown = bench.get("/api/v1/rollouts/r").await;
    assert_eq!(
        (&shown["phase"], &shown["counts"]),
        (&json!("failed"), &json!({}))
    );
}

#[tokio::test(start_paused = true)]
async fn hubs_show_the_permits_of_the_limiter() {
    let limits = HubLimits::of(Tier::S3, 1, 1.0);
    let bench = Bench::on(limits, Access::Anonymous);
    let hub = build::hub("a");
    let quota = limits.sends_per_minute.unwrap();
    let request = PermitRequest {
        hub: hub.clone(),
        max_permits: 10,
        per_minute: quota,
        rollout: build::name("r"),
        weight: 1,
        limit: None,
    };
    bench.store.take_permits(&request).await.unwrap();
    let look = async || {
        let (_, _, text) = bench.send(request_of("/api/v1/hubs")).await;
        let hubs: Value = serde_json::from_str(&text).unwrap();
        hubs["hubs"][0].clone()
    };
    let given = look().await;
    assert_eq!(given["permits"]["per_minute"], quota);
    assert_eq!(given["permits"]["rollouts"], json!(["r"]));
    assert_eq!(given["permits"].get("paused_until"), None);
    bench.store.throttled(&hub, None).await.unwrap();
    let unavailable = look().await;
    assert!(
        unavailable["permits"]["paused_until"].is_string(),
        "{unavailable}"
    );
    assert!(
        unavailable["permits"]["per_minute"].as_f64().unwrap() < quota,
        "{unavailable}"
    );
}

#[tokio::test]
async fn stop_all_is_shown_until_resume_all() {
    let bench = Bench::new().await;
    for path in ["/api/v1/rollouts", "/api/v1/hubs"] {
        assert_eq!(bench.get(path).await.get("stopped"), None);
        let reason = json!({ "reason": "wrong build" });
        assert_eq!(bench.post("/api/v1/stop-all", reason).await.0, 200);
        let stopped = bench.get(path).await["stopped"].take();
        assert_eq!(stopped["by"], "admin-ann");
        assert_eq!(stopped["reason"], "wrong build (stop-all by admin-ann)");
        assert!(stopped["since"].is_string(), "{stopped}");
        assert_eq!(bench.post("/api/v1/resume-all", json!({})).await.0, 200);
        assert_eq!(bench.get(path).await.get("stopped"), None);
    }
}

#[tokio::test]
async fn texts_of_a_request_have_a_length_limit() {
    let bench = Bench::new().await;
    build::running(&bench.store, "r", vec![build::batch(0, 5)]).await;
    let reason = |chars: usize| json!({ "reason": "\u{e4}".repeat(chars) });
    let path = "/api/v1/rollouts/r/pause";
    let (status, answer) = bench.post(path, reason(1_001)).await;
    assert_eq!(status, 422, "{answer}");
    let detail = answer["detail"].as_str().unwrap();
    assert!(
        detail.contains("reason has 1001 characters; at most 1000"),
        "{detail}"
    );
    assert_eq!(bench.post(path, reason(1_000)).await.0, 200);
    let mut long = spec("long");
    long["description"] = json!("x".repeat(1_001));
    let (status, answer) = bench.post("/api/v1/rollouts", long).await;
    assert_eq!(status, 422, "{answer}");
    assert!(
        answer["details"][0]
            .as_str()
            .unwrap()
            .starts_with("description: has 1001"),
        "{answer}"
    );
}

/// A request from this machine.
fn request_of(path: &str) -> Request<Body> {
    let mut request = request(Method::GET, path, None, None);
    let host = "localhost".parse().unwrap();
    request.headers_mut().insert(header::HOST, host);
    request
}

#[tokio::test]
async fn events_are_streamed_after_the_last_known_event() {
    let bench = Bench::new().await;
    build::running(&bench.store, "r", vec![build::batch(0, 5)]).await;
    let token = bench.token(Role::Viewer);
    let mut stream_request = request(Method::GET, "/api/v1/rollouts/r/events", Some(token), None);
    stream_request
        .headers_mut()
        .insert("last-event-id", "1".parse().unwrap());
    let response = bench.router.clone().oneshot(stream_request).await.unwrap();
    assert_eq!(
        response.headers()[header::CONTENT_TYPE],
        "text/event-stream"
    );
    let mut body = response.into_body().into_data_stream();
    let mut text = String::new();
    while !text.contains("id: 3") {
        let piece = futures::StreamExt::next(&mut body).await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(&piece).unwrap());
    }
    assert!(!text.contains("id: 1\n"), "{text}");
    assert!(text.contains("event: rollout.planning\n"), "{text}");
    assert!(text.contains("\"id\":\"r/2\""), "{text}");
}

#[tokio::test]
async fn errors_are_reported_as_problems() {
    let bench = Bench::new().await;
    let token = Some(bench.token(Role::Admin));
    let raw = |path: &str, content_type: &str, body: &str| {
        let mut request = request(Method::POST, path, token, Some(json!({})));
        *request.body_mut() = Body::from(body.to_owned());
        request
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type.parse().unwrap());
        request
    };
    let get = |path: &str| request(Method::GET, path, token, None);
    let large = format!("{{\"name\": \"{}\"}}", "x".repeat(3_000_000));
    let json = "application/json";
    let table = [
        (
            raw("/api/v1/rollouts", json, "{"),
            400,
            "the body is not JSON",
        ),
        (
            raw(
                "/api/v1/rollouts",
                json,
                "{\"name\": \"r\", \"name\": \"s\"}",
            ),
            400,
            "the body: name: is given twice",
        ),
        (
            raw(
                "/api/v1/rollouts/no/retry",
                "Application/JSON",
                "{\"outcomes\": null, \"reason\": null}",
            ),
            404,
            "there is no rollout no",
        ),
        (
            raw(
                "/api/v1/rollouts/r/pause",
                json,
                "{\"why\": 1, \"reason\": 2}",
            ),
            422,
            "reason: is the number 2, and must be a text",
        ),
        (
            raw("/api/v1/rollouts", "text/plain", "{}"),
            415,
            "must be application/json",
        ),
        (raw("/api/v1/rollouts", json, &large), 413, ""),
        (
            raw("/api/v1/rollouts", json, "{\"name\": \"r\"}"),
            422,
            "the spec is invalid",
        ),
        (
            raw("/api/v1/rollouts", json, "[]"),
            422,
            "the spec is invalid",
        ),
        (
            raw("/api/v1/rollouts/r/pause", json, "{\"why\": 1}"),
            422,
            "why: is not a field here; the fields are reason",
        ),
        (
            raw("/api/v1/rollouts/r/pause", json, "[]"),
            422,
            "is a list, and must be a map with fields such as reason",
        ),
        (
            raw("/api/v1/rollouts/r/promote", json, "{\"stage\": \"s\"}"),
            422,
            "reason: is missing",
        ),
        (
            raw("/api/v1/rollouts/no/pause", json, "{}"),
            404,
            "there is no rollout no",
        ),
        (
            raw("/api/v1/rollouts/%20/pause", json, "{}"),
            404,
            "there is no rollout",
        ),
        (
            get("/api/v1/rollouts?limit=0"),
            400,
            "limit must be 1 to 200",
        ),
        (
            get("/api/v1/rollouts?limit=x"),
            400,
            "limit: is the text \"x\", and must be a whole number",
        ),
        (
            get("/api/v1/rollouts?frm=x"),
            400,
            "frm: is not a field here; the fields are after, limit, phase",
        ),
        (
            get("/api/v1/rollouts/no/devices?outcome=bad"),
            400,
            "\"bad\" is not an outcome",
        ),
        (
            get("/api/v1/rollouts/no/devices?after=7"),
            400,
            "the `next` of the previous page",
        ),
        (
            get("/api/v1/rollouts/no/export?format=xml"),
            400,
            "jsonl, csv or spreadsheet",
        ),
        (
            get("/api/v1/rollouts/no/events"),
            404,
            "there is no rollout no",
        ),
        (
            get("/api/v1/nothing"),
            404,
            "there is no resource at /api/v1/nothing",
        ),
        (
            get("/api/v1/stop-all"),
            405,
            "method GET is not allowed for /api/v1/stop-all",
        ),
    ];
    for (request, status, says) in table {
        let shown = format!("{} {}", request.method(), request.uri());
        let (found, content_type, text) = bench.send(request).await;
        assert_eq!(found.as_u16(), status, "{shown}: {text}");
        assert_eq!(content_type, "application/problem+json", "{shown}: {text}");
        let problem: Value = serde_json::from_str(&text).unwrap();
        assert!(
            problem["detail"].as_str().unwrap().contains(says),
            "{shown}: {text}"
        );
        assert_eq!(problem["status"], status);
    }
}

#[tokio::test]
async fn only_local_hosts_are_served_without_tokens() {
    let bench = Bench::with(Access::Anonymous);
    let ask = |host: &str| {
        let mut request = request(Method::GET, "/api/v1/whoami", None, None);
        request
            .headers_mut()
            .insert(header::HOST, host.parse().unwrap());
        request
    };
    let (status, _, text) = bench.send(ask("localhost:8081")).await;
    assert_eq!(
        (status, &*text),
        (StatusCode::OK, r#"{"name":"anonymous","role":"admin"}"#)
    );
    let (status, _, text) = bench.send(ask("evil.example.org")).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "{text}");
}

/// Every file referenced from the page is served with its type, without a token, and with the ban
/// on loading from other origins.
#[tokio::test]
async fn the_page_needs_no_token_and_no_other_origin() {
    let bench = Bench::new().await;
    let mut seen = BTreeMap::new();
    let mut paths = vec!["/".to_owned()];
    while let Some(path) = paths.pop() {
        if seen.contains_key(&path) {
            continue;
        }
        let page_request = request(Method::GET, &path, None, None);
        let response = bench.router.clone().oneshot(page_request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        let kind = header("content-type");
        let policy = header("content-security-policy");
        for rule in ["default-src 'self'", "frame-ancestors 'none'"] {
            assert!(policy.split("; ").any(|it| it == rule), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(header("x-content-type-options"), "nosniff");
        let body = to_bytes(response.into_body(), 100_000).await.unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        for (before, after) in [("src=\"", '"'), ("href=\"", '"'), ("from './", '\'')] {
            let named = text.split(before).skip(1);
            let named = named.filter_map(|rest| rest.split(after).next());
            paths.extend(
                named
                    .filter(|it| !it.starts_with('#'))
                    .map(|it| format!("/{it}")),
            );
        }
        for never in [
            "innerHTML",
            "insertAdjacentHTML",
            "eval(",
            " style=",
            " onclick=",
        ] {
            assert!(!text.contains(never), "{path} has {never}");
        }
        let elsewhere = text.replace("http://www.w3.org/2000/svg", "");
        assert!(!elsewhere.contains("://"), "{path} names another origin");
        seen.insert(path, kind);
    }
    let kinds = [
        ("/", "text/html; charset=utf-8"),
        ("/app.js", "text/javascript; charset=utf-8"),
        ("/icon.svg", "image/svg+xml"),
        ("/style.css", "text/css; charset=utf-8"),
    ];
    for (path, kind) in kinds {
        assert_eq!(seen[path], kind);
    }
    assert!(seen.len() >= 8, "{seen:?}");
}

/// A request whose body never arrives.
fn bodiless(path: &str, token: &str) -> Request<Body> {
    let mut request = request(Method::POST, path, Some(token), Some(json!({})));
    *request.body_mut() =
        Body::from_stream(futures::stream::pending::<Result<String, std::io::Error>>());
    request
}

#[tokio::test(start_paused = true)]
async fn denied_requests_are_refused_before_the_body_is_read() {
    let bench = Bench::new().await;
    let document = openapi();
    for (path, operations) in document["paths"].as_object().unwrap() {
        if operations.get("post").is_none() {
            continue;
        }
        let path = path.replace("{name}", "r");
        let (status, _, text) = bench.send(bodiless(&path, bench.token(Role::Viewer))).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{path}: {text}");
        let (status, _, text) = bench.send(bodiless(&path, "twc_wrong")).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}: {text}");
        // A body is not waited for without end, whoever the caller is.
        let started_at = tokio::time::Instant::now();
        let (status, _, text) = bench.send(bodiless(&path, bench.token(Role::Admin))).await;
        assert_eq!(status, StatusCode::REQUEST_TIMEOUT, "{path}: {text}");
        assert!(text.contains("did not arrive within 10s"), "{text}");
        assert!(started_at.elapsed().as_secs() < 20, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn stop_commands_are_served_when_request_slots_are_full() {
    let people: Vec<_> = (0..5)
        .map(|n| new_token(&format!("operator-{n}"), Role::Operator))
        .collect();
    let (viewer, viewer_line) = new_token("vic", Role::Viewer);
    let (admin, admin_line) = new_token("ada", Role::Admin);
    let lines: Vec<_> = people.iter().map(|(_, line)| &**line).collect();
    let lines = [lines, vec![&viewer_line, &admin_line]].concat();
    let (bench, _file) = Bench::of_lines(&lines.join("\n")).await;
    let hold = |path: &str, token: &str| {
        let (router, request) = (bench.router.clone(), bodiless(path, token));
        tokio::spawn(async move { router.oneshot(request).await.unwrap().status() })
    };
    let held: Vec<_> = people
        .iter()
        .flat_map(|(token, _)| (0..30).map(|_| hold("/api/v1/rollouts", token)))
        .collect();
    let soon = || tokio::time::sleep(std::time::Duration::from_secs(1));
    soon().await;
    let whoami = |token| request(Method::GET, "/api/v1/whoami", Some(token), None);
    let (status, _, text) = bench.send(whoami(&viewer)).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{text}");
    assert!(text.contains("too many concurrent requests"), "{text}");
    let stops: Vec<_> = people[..3]
        .iter()
        .flat_map(|(token, _)| (0..30).map(|_| hold("/api/v1/stop-all", token)))
        .collect();
    soon().await;
    for path in ["stop-all", "rollouts/r/pause", "rollouts/r/abort"] {
        let path = format!("/api/v1/{path}");
        let stop = request(Method::POST, &path, Some(&admin), Some(json!({})));
        let (status, _, text) = bench.send(stop).await;
        assert!(
            [StatusCode::OK, StatusCode::NOT_FOUND].contains(&status),
            "{path}: {status}: {text}"
        );
    }
    let mut found = BTreeMap::new();
    for request in held.into_iter().chain(stops) {
        *found.entry(request.await.unwrap().as_u16()).or_insert(0) += 1;
    }
    // The number of admitted requests, and the number of refused requests: some by the limit per
    // caller, and some by the limit in all.
    assert_eq!(
        found,
        BTreeMap::from([(408, 64 + 12), (503, 150 - 64 + 90 - 12)])
    );
    let (status, _, text) = bench.send(whoami(&viewer)).await;
    assert_eq!(status, StatusCode::OK, "{text}");
}

#[tokio::test]
async fn a_single_caller_cannot_take_all_stream_slots() {
    let bench = Bench::new().await;
    build::running(&bench.store, "r", vec![build::batch(0, 5)]).await;
    let open = async |role, what: &str| {
        let path = format!("/api/v1/rollouts/r/{what}");
        let request = request(Method::GET, &path, Some(bench.token(role)), None);
        bench.router.clone().oneshot(request).await.unwrap()
    };
    let mut held = Vec::new();
    let mut refused = 0;
    for _ in 0..32 {
        let response = open(Role::Viewer, "events").await;
        match response.status() {
            StatusCode::OK => held.push(response),
            _ => refused += 1,
        }
    }
    assert_eq!((held.len(), refused), (8, 24));
    assert_eq!(open(Role::Admin, "export").await.status(), StatusCode::OK);
    assert_eq!(open(Role::Admin, "events").await.status(), StatusCode::OK);
    held.pop();
    assert_eq!(open(Role::Viewer, "events").await.status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_when_the_token_is_removed() {
    let (ann, ann_line) = new_token("ann", Role::Viewer);
    let (bob, bob_line) = new_token("bob", Role::Viewer);
    let (bench, file) = Bench::of_lines(&format!("{ann_line}\n{bob_line}")).await;
    build::running(&bench.store, "r", vec![build::batch(0, 5)]).await;
    let open = async |token: &str| {
        let path = "/api/v1/rollouts/r/events";
        let request = request(Method::GET, path, Some(token), None);
        let response = bench.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        response.into_body().into_data_stream()
    };
    let (mut of_ann, mut of_bob) = (open(&ann).await, open(&bob).await);
    std::fs::write(file.path(), &bob_line).unwrap();
    let ends = async {
        // The stream must break off. After an orderly end, a client would take the stream for
        // complete.
        while let Some(piece) = futures::StreamExt::next(&mut of_ann).await {
            if let Err(error) = piece {
                return error.to_string();
            }
        }
        unreachable!("the stream ended without an error")
    };
    let error = tokio::select! {
        error = ends => error,
        () = bench.access.follow() => unreachable!("follow never returns"),
    };
    assert!(error.contains("the token is no longer valid"), "{error}");
    let piece = futures::StreamExt::next(&mut of_bob).await.unwrap();
    assert!(piece.is_ok(), "the other stream continues");
}

/// As the command line calls the router: the request names the caller, the response is produced on
/// demand, and store errors arrive unchanged.
#[tokio::test]
async fn the_router_is_called_without_a_server() {
    let bench = Bench::with(Access::Provided);
    let batches = vec![build::batch(0, 5), build::batch(1, 5)];
    let rollout = build::running(&bench.store, "r", batches).await;
    let open = async |role: Option<Role>| {
        let mut request = request(Method::GET, "/api/v1/rollouts/r/export", None, None);
        let caller = role.map(|role| Caller::new("ann".to_owned(), role));
        caller.map(|caller| request.extensions_mut().insert(caller));
        bench.router.clone().oneshot(request).await.unwrap()
    };
    let nobody = open(None).await;
    assert_eq!(nobody.status(), StatusCode::UNAUTHORIZED);
    let response = open(Some(Role::Admin)).await;
    assert_eq!(response.status(), StatusCode::OK);
    let mut pieces = response.into_body().into_data_stream();
    let first = futures::StreamExt::next(&mut pieces).await.unwrap();
    assert!(first.is_ok(), "{first:?}");
    let name = &rollout.spec.name;
    let revision = bench.store.rollout(name).await.unwrap().unwrap();
    bench.store.remove(name, revision.revision()).await.unwrap();
    let error = loop {
        let piece = futures::StreamExt::next(&mut pieces).await;
        if let Err(error) = piece.expect("the stream ends with an error") {
            break error;
        }
    };
    let mut causes =
        std::iter::successors(Some(&error as &dyn std::error::Error), |it| it.source());
    assert!(
        causes.any(|it| it.downcast_ref::<StoreError>().is_some()),
        "{error:?}"
    );
}
