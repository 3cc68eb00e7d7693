//! Requests that are no calls, or whose messages cannot be read: what their callers are told, and that no operator is woken. And
//! messages that are compressed, as they may be.

use std::io::{Read, Write as _};

use bytes::{BufMut as _, Bytes, BytesMut};
use flate2::Compression;
use flate2::read::{GzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use prost::Message;
use tollgate::grpc::v1;
use tonic::codegen::http::response::Parts;
use tonic::codegen::http::{Method, Request};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_types::StatusExt as _;

use crate::abuse::{LIST_PLANS, RESERVE, reserve, resident, serve, used_and_held};
use crate::access::reason;
use crate::raw::{Raw, framed};
use crate::rolling::until;
use crate::support::served::Served;
use crate::support::{Replica, fresh_user};

const CHECK: &str = "/grpc.health.v1.Health/Check";
const REFLECT: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// A frame of gRPC, with any flag.
fn frame(flag: u8, bytes: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(flag);
    frame.put_u32(u32::try_from(bytes.len()).unwrap());
    frame.put(bytes);
    frame.freeze()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bodies that are no message of a call, and how they say that they are compressed.
fn unreadable() -> Vec<(&'static str, Option<&'static str>, Bytes)> {
    let deep = [vec![0x0b; 5000], vec![0x0c; 5000]].concat();
    let good = reserve("alice").encode_to_vec();
    let broken = {
        let mut bytes = gzip(&good);
        let middle = bytes.len() / 2;
        bytes[middle..].fill(0xff);
        bytes
    };
    vec![
        ("nothing", None, Bytes::new()),
        ("JSON", None, Bytes::from_static(b"{\"user_id\": \"alice\"}")),
        ("framed JSON", None, frame(0, b"{\"user_id\": \"alice\"}")),
        ("half a prefix", None, Bytes::from_static(b"\0\0\0")),
        ("a message that ends early", None, framed(&reserve("alice")).slice(..10)),
        ("a flag that is neither 0 nor 1", None, frame(7, &good)),
        ("compressed, without a name of how", None, frame(1, &gzip(&good))),
        ("compressed as identity", Some("identity"), frame(1, &gzip(&good))),
        ("gzip that is none", Some("gzip"), frame(1, &good)),
        ("gzip whose second half is wrong", Some("gzip"), frame(1, &broken)),
        ("gzip that ends early", Some("gzip"), frame(1, &gzip(&good)[..20])),
        ("deflate that is gzip", Some("deflate"), frame(1, &gzip(&good))),
        ("a number that never ends", None, frame(0, &[0xff; 20])),
        ("a field that is longer than its message", None, frame(0, &[0x0a, 0x7f, b'a'])),
        ("a field of another type", None, frame(0, &[0x08, 0x01])),
        ("text that is not UTF-8", None, frame(0, &[0x0a, 0x02, 0xff, 0xfe])),
        ("groups in groups in groups", None, frame(0, &deep)),
        ("an end without a start", None, frame(0, &[0x0c])),
        (
            "a good message, and then none",
            None,
            [&framed(&reserve("alice"))[..], &frame(0, &[0xff; 20])[..]].concat().into(),
        ),
    ]
}

/// What [`Served`] has counted as answers by which an operator is woken, and what else it has counted.
fn counted(served: &Served) -> (f64, f64) {
    let (_, text) = served.get("/metrics");
    let (mut loud, mut quiet) = (0.0, 0.0);
    for line in text.lines().filter(|line| line.starts_with("tollgate_rpcs_total{")) {
        let (labels, count) = line.rsplit_once(' ').unwrap();
        let wakes = ["INTERNAL", "UNKNOWN", "UNAVAILABLE", "DATA_LOSS"]
            .iter()
            .any(|code| labels.contains(&format!("code=\"{code}\"")));
        *(if wakes { &mut loud } else { &mut quiet }) += count.parse::<f64>().unwrap();
    }
    (loud, quiet)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_cannot_be_read_is_the_mistake_of_its_caller() {
    let served = serve(&["--admin-listen", "127.0.0.1:0", "--envoy-listen", "127.0.0.1:0"]);
    let mut raw = Raw::connect(served.address).await;
    let mut envoy = Raw::connect(served.envoy.unwrap()).await;
    let mut made = 0.0;
    for (what, encoding, body) in unreadable() {
        let more: Vec<_> = encoding.map(|encoding| ("grpc-encoding", encoding)).into_iter().collect();
        for (caller, path) in [(&mut raw, RESERVE), (&mut envoy, SHOULD_RATE_LIMIT)] {
            let status = caller.call(path, &more, body.clone()).await.unwrap().status();
            assert_eq!(reason(&status), (Code::InvalidArgument, "MESSAGE_MALFORMED".to_owned()), "{what}: {status:?}");
            assert!(status.message().contains("send one message"), "{what}: it says what to do: {status:?}");
            assert!(!status.message().contains("alice"), "{what}: it does not quote what was sent: {status:?}");
            made += 1.0;
        }
    }
    for encoding in ["br", "zstd", "snappy", "\u{e9}"] {
        let body = frame(1, &gzip(&reserve("alice").encode_to_vec()));
        let status = raw.call(RESERVE, &[("grpc-encoding", encoding)], body).await.unwrap().status();
        assert_eq!(reason(&status), (Code::Unimplemented, "ENCODING_UNSUPPORTED".to_owned()), "{status:?}");
        assert_eq!(status.metadata().get("grpc-accept-encoding").unwrap(), "gzip,deflate,identity");
        made += 1.0;
    }
    // Without a key, too.
    let junk = frame(0, &[0xff; 20]);
    let status = raw.call(CHECK, &[], junk.clone()).await.unwrap().status();
    assert_eq!(reason(&status), (Code::InvalidArgument, "MESSAGE_MALFORMED".to_owned()));
    // Behind the headers of a stream of answers.
    let symbol = MessageRequest::FileContainingSymbol("tollgate.v1.Nothing".to_owned());
    let asked = ServerReflectionRequest { message_request: Some(symbol), ..ServerReflectionRequest::default() };
    let status = raw.call(REFLECT, &[], framed(&asked)).await.unwrap().status();
    assert_eq!(reason(&status), (Code::NotFound, "NOT_FOUND".to_owned()));
    let status = raw.call(REFLECT, &[], junk).await.unwrap().status();
    assert_eq!(status.code(), Code::Ok, "reflection ends its stream where it cannot read on: {status:?}");
    let (loud, quiet) = counted(&served);
    assert_eq!((loud, quiet), (0.0, made + 3.0), "counted, and nobody is woken");
    let good = framed(&reserve(&fresh_user("readable")));
    assert_eq!(raw.call(RESERVE, &[], good).await.unwrap().status().code(), Code::Ok, "its connection lives on");
    assert!(!served.log().contains("ERROR"), "{}", served.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_amid_its_message_wakes_nobody() {
    let served = serve(&["--admin-listen", "127.0.0.1:0"]);
    let half = framed(&reserve("alice")).slice(..10);
    // NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, ..., HTTP_1_1_REQUIRED: all that a client can give as its reason.
    for code in 0..=13_u32 {
        let mut raw = Raw::connect(served.address).await;
        let mut begun = raw.begin(RESERVE, &[]).await.unwrap();
        begun.body.send_data(half.clone(), false).unwrap();
        begun.body.send_reset(code.into());
        // The server has read the reset once it answers what came after it.
        assert_eq!(
            raw.call(LIST_PLANS, &[], framed(&v1::ListPlansRequest {})).await.unwrap().status().code(),
            Code::Ok
        );
    }
    // More, and less, than was announced.
    for length in ["3", "3000"] {
        let mut raw = Raw::connect(served.address).await;
        let _: Result<_, h2::Error> = raw.call(RESERVE, &[("content-length", length)], half.clone()).await;
    }
    // Its connection breaks.
    let mut raw = Raw::connect(served.address).await;
    let mut begun = raw.begin(RESERVE, &[]).await.unwrap();
    begun.body.send_data(half, false).unwrap();
    assert_eq!(raw.call(LIST_PLANS, &[], framed(&v1::ListPlansRequest {})).await.unwrap().status().code(), Code::Ok);
    drop((raw, begun));
    until("every call has been counted", async || counted(&served).1 + counted(&served).0 >= 32.0).await;
    assert_eq!(counted(&served).0, 0.0);
}

/// Sends a request of a method and a content type.
async fn ask(
    raw: &mut Raw,
    served: &Served,
    method: Method,
    path: &str,
    content_type: &str,
    body: Bytes,
) -> (Parts, String) {
    let mut head = Request::builder().method(method).uri(format!("http://{}{path}", served.address));
    if !content_type.is_empty() {
        head = head.header("content-type", content_type);
    }
    let (head, body) = raw.send(head.body(()).unwrap(), body).await.unwrap();
    (head, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_no_call_is_answered_as_http_says_and_in_words() {
    let served = serve(&["--admin-listen", "127.0.0.1:0"]);
    let mut raw = Raw::connect(served.address).await;
    let mut made = 0.0;
    for method in [Method::GET, Method::HEAD, Method::PUT, Method::DELETE, Method::OPTIONS, Method::PATCH] {
        for path in [RESERVE, LIST_PLANS, CHECK, "/"] {
            let (head, body) = ask(&mut raw, &served, method.clone(), path, "application/grpc", Bytes::new()).await;
            assert_eq!(
                (head.status.as_u16(), head.headers["allow"].to_str().unwrap()),
                (405, "POST"),
                "{method} {path}"
            );
            let status = Status::from_header_map(&head.headers).unwrap();
            assert_eq!(reason(&status), (Code::Unimplemented, "METHOD_NOT_ALLOWED".to_owned()), "{method} {path}");
            assert_eq!(method != Method::HEAD, body.contains("not POST"), "{method} {path}: {body:?}");
            made += 1.0;
        }
    }
    let json = Bytes::from_static(b"{\"user_id\": \"alice\"}");
    for content_type in
        ["", "application/json", "application/grpc+json", "application/grpc-web+proto", "application/proto"]
    {
        for path in [RESERVE, CHECK, REFLECT, "/"] {
            let (head, body) = ask(&mut raw, &served, Method::POST, path, content_type, json.clone()).await;
            assert_eq!(head.status.as_u16(), 415, "{content_type:?} {path}");
            assert_eq!(head.headers["content-type"], "text/plain; charset=utf-8");
            let status = Status::from_header_map(&head.headers).unwrap();
            assert_eq!(
                reason(&status),
                (Code::InvalidArgument, "CONTENT_TYPE_UNSUPPORTED".to_owned()),
                "{content_type:?}"
            );
            assert_eq!(body.trim_end(), status.message(), "{content_type:?} {path}");
            assert!(body.contains("application/grpc") && !body.contains("alice"), "{body:?}");
            made += 1.0;
        }
    }
    let (loud, quiet) = counted(&served);
    assert_eq!((loud, quiet), (0.0, made), "counted, and nobody is woken");
    for content_type in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"] {
        let body = framed(&v1::ListPlansRequest {});
        let (head, _) = ask(&mut raw, &served, Method::POST, LIST_PLANS, content_type, body).await;
        assert_eq!((head.status.as_u16(), head.headers.get("grpc-status")), (200, None), "{content_type}");
    }
}

fn all(mut reader: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Asks for the plans: how the answer says that it is compressed, its flag, and its plans.
async fn plans(
    raw: &mut Raw,
    served: &Served,
    more: &[(&str, &str)],
    body: Bytes,
) -> (Option<String>, u8, Vec<v1::Plan>) {
    let mut head =
        Request::post(format!("http://{}{LIST_PLANS}", served.address)).header("content-type", "application/grpc");
    for (name, value) in more {
        head = head.header(*name, *value);
    }
    let (head, body) = raw.send(head.body(()).unwrap(), body).await.unwrap();
    let encoding = head.headers.get("grpc-encoding").map(|value| value.to_str().unwrap().to_owned());
    let message = match (body[0], encoding.as_deref()) {
        (0, _) => body[5..].to_vec(),
        (1, Some("gzip")) => all(GzDecoder::new(&body[5..])),
        (1, Some("deflate")) => all(ZlibDecoder::new(&body[5..])),
        odd => panic!("{odd:?}"),
    };
    (encoding, body[0], v1::ListPlansResponse::decode(&message[..]).unwrap().plans)
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_requests_are_understood_and_answered_alike() {
    let served = serve(&[]);
    let mut raw = Raw::connect(served.address).await;
    let mut replica = Replica::connect(served.address).await;
    let user = fresh_user("compressed");
    let message = reserve(&user).encode_to_vec();
    for (encoding, body) in [("gzip", gzip(&message)), ("deflate", deflate(&message))] {
        // Both flags may come where an encoding is named.
        for body in [frame(1, &body), frame(0, &message)] {
            let status = raw.call(RESERVE, &[("grpc-encoding", encoding)], body).await.unwrap().status();
            assert_eq!(status.code(), Code::Ok, "{encoding}: {status:?}");
        }
    }
    assert_eq!(used_and_held(&mut replica, &user).await, (0.0, 4.0));

    let plain = framed(&v1::ListPlansRequest {});
    let understands = ("grpc-accept-encoding", "identity, deflate, gzip");
    let (encoding, flag, known) = plans(&mut raw, &served, &[understands], plain.clone()).await;
    assert_eq!((encoding, flag), (None, 0), "to understand a compression is not to ask for it");
    assert_eq!(known, replica.plans.list_plans(v1::ListPlansRequest {}).await.unwrap().into_inner().plans);
    for (encoding, understands) in [("gzip", "gzip"), ("deflate", "deflate"), ("gzip", "br, gzip , identity")] {
        let more = [("grpc-encoding", encoding), ("grpc-accept-encoding", understands)];
        let body = if encoding == "gzip" { gzip(&[]) } else { deflate(&[]) };
        let (found, flag, plans) = plans(&mut raw, &served, &more, frame(1, &body)).await;
        assert_eq!((found.as_deref(), flag, &plans), (Some(encoding), 1, &known), "{encoding}");
    }
    let (encoding, flag, _) = plans(&mut raw, &served, &[("grpc-encoding", "gzip")], frame(1, &gzip(&[]))).await;
    assert_eq!((encoding, flag), (None, 0), "it has not said that it understands any");

    // A channel that compresses, compresses these as well.
    let check = frame(1, &gzip(&HealthCheckRequest::default().encode_to_vec()));
    assert_eq!(raw.call(CHECK, &[("grpc-encoding", "gzip")], check).await.unwrap().status().code(), Code::Ok);
    let list = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let list = frame(1, &gzip(&list.encode_to_vec()));
    assert_eq!(raw.call(REFLECT, &[("grpc-encoding", "gzip")], list).await.unwrap().status().code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decompression_bomb_is_refused_without_its_memory() {
    let served = serve(&[]);
    let mut raw = Raw::connect(served.address).await;
    // 64 MiB in 64 KiB, which is less than a message may have. A field that nobody knows, so that it would decode.
    let mut bomb = vec![0xfa, 0x7f];
    prost::encoding::encode_varint(64 << 20, &mut bomb);
    bomb.resize(bomb.len() + (64 << 20), 0);
    let before = resident(&served);
    for (encoding, bytes) in [("gzip", gzip(&bomb)), ("deflate", deflate(&bomb))] {
        assert!(bytes.len() < 256 << 10, "{}", bytes.len());
        let body = frame(1, &bytes);
        for _ in 0..20 {
            let status = raw.call(RESERVE, &[("grpc-encoding", encoding)], body.clone()).await.unwrap().status();
            assert_eq!(reason(&status), (Code::OutOfRange, "MESSAGE_TOO_LARGE".to_owned()), "{status:?}");
            assert!(status.get_error_details().retry_info().is_none(), "to wait does not help");
        }
        // Nobody who shows no key gets as much.
        let status = raw
            .call(CHECK, &[("grpc-encoding", encoding)], frame(1, &deflate_or_gzip(encoding, 5000)))
            .await
            .unwrap()
            .status();
        assert_eq!(reason(&status), (Code::OutOfRange, "MESSAGE_TOO_LARGE".to_owned()), "{status:?}");
    }
    let peak = peak(&served);
    println!("40 bombs of 64 MiB: {before} KiB, and at most {peak} KiB");
    assert!(peak < before + (32 << 10), "{before} KiB grew to {peak} KiB");
}

/// So many zeros.
fn deflate_or_gzip(encoding: &str, zeros: usize) -> Vec<u8> {
    if encoding == "gzip" { gzip(&vec![0; zeros]) } else { deflate(&vec![0; zeros]) }
}

/// The most memory that it has ever had, in KiB.
fn peak(served: &Served) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it runs");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
