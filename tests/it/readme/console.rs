//! Runs `console` blocks: calls by grpcurl, whose messages are made of the JSON, and commands of `tollgate`.

use std::collections::BTreeMap;

use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::Value as Json;
use tollgate::catalog;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Status};

use crate::support::served::tollgate;
use crate::support::{Replica, fresh_user};

const CALL: &str = "$ grpcurl -plaintext -d '";
const PROGRAM: &str = "$ ./target/release/tollgate ";

/// Whether a block is a call.
pub fn is_call(text: &str) -> bool {
    text.starts_with(CALL)
}

/// What one page has done so far.
pub struct Session {
    /// The catalog that the page has shown last.
    catalog: String,
    /// The replica that serves it, once it was called.
    replica: Option<Replica>,
    /// Users and reservations as the page names them, and as they are.
    users: BTreeMap<String, String>,
    reservations: BTreeMap<String, String>,
}

impl Session {
    pub fn new() -> Self {
        let (users, reservations) = (BTreeMap::new(), BTreeMap::new());
        Self { catalog: catalog::EXAMPLE.to_owned(), replica: None, users, reservations }
    }

    /// Serves this catalog from now on.
    pub fn serve(&mut self, catalog: &str) {
        self.catalog = catalog.to_owned();
        self.replica = None;
    }

    /// Makes the call of a block, and compares the answer.
    pub async fn call(&mut self, text: &str, place: &str) {
        let (request, rest) = text.strip_prefix(CALL).unwrap().split_once('\'').unwrap();
        let rest = rest.trim_start_matches([' ', '\\', '\n']).strip_prefix("localhost:50051 ").expect(place);
        let (method, answer) = rest.split_once('\n').expect(place);
        let mut fields: Json = serde_json::from_str(request).unwrap_or_else(|error| panic!("{place}: {error}"));
        self.name_users_and_reservations(&mut fields, place);
        let answer = answer.trim();
        match (self.ask(method, fields, place).await, answer.strip_prefix("ERROR:")) {
            (Ok(mut found), None) => {
                let mut expected: Json =
                    serde_json::from_str(&marked(answer)).unwrap_or_else(|error| panic!("{place}: {error}\n{answer}"));
                if let (Some(real), Some(told)) = (found.get("reservationId"), expected.get("reservationId")) {
                    let (real, told) = (real.as_str().unwrap(), told.as_str().unwrap());
                    self.reservations.insert(told.to_owned(), real.to_owned());
                }
                mask(&mut found);
                mask(&mut expected);
                let shown = format!("{place}\nanswered {found:#}");
                assert_answers(&found, &expected, "", &shown);
            }
            (Err(status), Some(expected)) => {
                let found = [format!("Code: {:?}", status.code()), format!("Message: {}", status.message())];
                let expected: Vec<_> = expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
                assert_eq!(expected[..2], found, "{place}");
                assert!(expected[2..].is_empty() || expected[2..] == ["..."], "{place}");
            }
            (Ok(found), Some(_)) => panic!("{place}: an answer instead of an error: {found:#}"),
            (Err(status), None) => panic!("{place}: {status:?}"),
        }
    }

    /// Runs the command of a block, and compares its output.
    pub fn command(&self, text: &str, place: &str) {
        let (arguments, expected) = text.strip_prefix(PROGRAM).expect(place).split_once('\n').expect(place);
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("catalog.yaml"), &self.catalog).unwrap();
        let output =
            tollgate().args(arguments.split(' ')).current_dir(&directory).output().expect("the program can be run");
        let told = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        assert_eq!(told.trim_end(), expected.trim_end(), "{place}");
    }

    fn name_users_and_reservations(&mut self, fields: &mut Json, place: &str) {
        if let Some(user) = fields.get("user_id").and_then(Json::as_str).map(str::to_owned) {
            let real = self.users.entry(user).or_insert_with_key(|user| fresh_user(user));
            fields["user_id"] = Json::from(real.as_str());
        }
        if let Some(told) = fields.get("reservation_id").and_then(Json::as_str).map(str::to_owned) {
            let real = self.reservations.get(&told).unwrap_or_else(|| panic!("{place}: no answer above has {told}"));
            fields["reservation_id"] = Json::from(real.as_str());
        }
    }

    async fn ask(&mut self, method: &str, fields: Json, place: &str) -> Result<Json, Status> {
        let pool = DescriptorPool::decode(tollgate::grpc::v1::FILE_DESCRIPTOR_SET).unwrap();
        let (service, name) = method.trim().split_once('/').expect(place);
        let service_descriptor = pool.get_service_by_name(service).expect(place);
        let method = service_descriptor.methods().find(|method| method.name() == name).expect(place);
        let message = DynamicMessage::deserialize(method.input(), fields).unwrap_or_else(|e| panic!("{place}: {e}"));
        if self.replica.is_none() {
            self.replica = Some(Replica::start(&self.catalog).await);
        }
        let address = self.replica.as_ref().unwrap().address;
        let channel = tonic::transport::Channel::from_shared(format!("http://{address}")).unwrap();
        let mut client = tonic::client::Grpc::new(channel.connect().await.unwrap());
        client.ready().await.unwrap();
        let path = format!("/{service}/{name}").parse().unwrap();
        let found = client.unary(Request::new(message), path, Dynamic(method.output())).await?.into_inner();
        Ok(found.serialize_with_options(serde_json::value::Serializer, &SerializeOptions::new()).unwrap())
    }
}

/// JSON with `...` made an entry of the object or an item of the list in which it stands.
fn marked(answer: &str) -> String {
    let mut marked = String::new();
    let (mut open, mut in_text, mut rest) = (Vec::new(), false, answer);
    while let Some(character) = rest.chars().next() {
        if !in_text && let Some(after) = rest.strip_prefix("...") {
            marked.push_str(if open.last() == Some(&'[') { "\"...\"" } else { "\"...\": null" });
            rest = after;
            continue;
        }
        match character {
            '"' => in_text = !in_text,
            '{' | '[' if !in_text => open.push(character),
            '}' | ']' if !in_text => {
                open.pop();
            }
            _ => {}
        }
        marked.push(character);
        rest = &rest[character.len_utf8()..];
    }
    marked
}

/// Panics unless an answer is the one that is expected, in which `...` stands for what is left out.
fn assert_answers(found: &Json, expected: &Json, path: &str, shown: &str) {
    match (found, expected) {
        (Json::Object(found), Json::Object(expected)) => {
            for (name, value) in expected.iter().filter(|(name, _)| *name != "...") {
                let found = found.get(name).unwrap_or_else(|| panic!("{shown}\nwithout {path}.{name}"));
                assert_answers(found, value, &format!("{path}.{name}"), shown);
            }
            let shortened = expected.contains_key("...");
            for name in found.keys() {
                assert!(shortened || expected.contains_key(name), "{shown}\nwith {path}.{name}");
            }
        }
        (Json::Array(found), Json::Array(expected)) => {
            let shortened = expected.last().is_some_and(|last| last == "...");
            let expected = &expected[..expected.len() - usize::from(shortened)];
            let enough = if shortened { found.len() > expected.len() } else { found.len() == expected.len() };
            assert!(enough, "{shown}\nin {path}, which has {} items", found.len());
            for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
                assert_answers(found, expected, &format!("{path}[{index}]"), shown);
            }
        }
        _ => assert_eq!(found, expected, "{shown}\nin {path}"),
    }
}

/// What differs from run to run: only that it is there counts.
fn mask(value: &mut Json) {
    const VARIES: [&str; 11] = [
        "cycleAnchor",
        "endTime",
        "etag",
        "eventId",
        "expireTime",
        "reservationId",
        "resetTime",
        "retryAfter",
        "startTime",
        "userId",
        "windowStart",
    ];
    match value {
        Json::Object(fields) => {
            for (name, value) in fields {
                if VARIES.contains(&name.as_str()) { *value = Json::Null } else { mask(value) }
            }
        }
        Json::Array(items) => items.iter_mut().for_each(mask),
        // grpcurl writes 2000 where serde writes 2000.0.
        Json::Number(number) => *value = Json::from(number.as_f64().unwrap()),
        _ => {}
    }
}

#[test]
fn an_answer_may_be_shortened_and_nothing_else() {
    let found = serde_json::json!({ "a": 1.0, "b": [{ "c": "x", "d": true }, { "c": "y" }] });
    let agrees = |text: &str| {
        let expected: Json = serde_json::from_str(&marked(text)).unwrap();
        let mut expected = expected;
        mask(&mut expected);
        std::panic::catch_unwind(|| assert_answers(&found, &expected, "", "")).is_ok()
    };
    for (text, expected) in [
        (r#"{ "a": 1, "b": [{ "c": "x", "d": true }, { "c": "y" }] }"#, true),
        (r#"{ "a": 1, ... }"#, true),
        (r#"{ "b": [{ "c": "x", ... }, ...], ... }"#, true),
        (r#"{ ... }"#, true),
        (r#"{ "a": 2, ... }"#, false),
        (r#"{ "a": 1 }"#, false),
        (r#"{ "b": [{ "c": "x" }, ...], ... }"#, false),
        (r#"{ "b": [{ "c": "...", ... }, ...], ... }"#, false),
        (r#"{ "e": 1, ... }"#, false),
        (r#"{ "b": [{ ... }, { ... }, ...], ... }"#, false),
    ] {
        assert_eq!(agrees(text), expected, "{text}");
    }
}

/// Encodes and decodes messages by their descriptors.
struct Dynamic(MessageDescriptor);

impl Codec for Dynamic {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self::Encoder {
        Self(self.0.clone())
    }

    fn decoder(&mut self) -> Self::Decoder {
        Self(self.0.clone())
    }
}

impl Encoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, item: Self::Item, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        prost::Message::encode(&item, buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let decoded = DynamicMessage::decode(self.0.clone(), buffer);
        decoded.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
