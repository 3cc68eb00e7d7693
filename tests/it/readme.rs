//! The README's examples, run as they stand.

use std::collections::BTreeSet;

use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::Value as Json;
use tollgate::catalog;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Status};

use crate::support::served::tollgate;
use crate::support::{Replica, fresh_user};

const README: &str = include_str!("../../README.md");

/// The text of every fenced block of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let opening = format!("```{language}\n");
    README.split(opening.as_str()).skip(1).map(|rest| rest.split("\n```").next().unwrap()).collect()
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

/// What differs from run to run: only that it is there counts.
fn mask(value: &mut Json) {
    const VARIES: [&str; 8] =
        ["reservationId", "eventId", "expireTime", "windowStart", "resetTime", "startTime", "cycleAnchor", "userId"];
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

#[tokio::test]
async fn the_first_calls_answer_as_the_readme_says() {
    let replica = Replica::start(catalog::EXAMPLE).await;
    let pool = DescriptorPool::decode(tollgate::grpc::v1::FILE_DESCRIPTOR_SET).unwrap();
    let alice = fresh_user("alice");
    let mut reservation = String::new();
    let mut run = 0;
    for block in blocks("console") {
        let Some(rest) = block.strip_prefix("$ grpcurl -plaintext -d '") else { continue };
        let (request, rest) = rest.split_once("' localhost:50051 ").unwrap();
        let (method, answer) = rest.split_once('\n').unwrap();
        let (service, name) = method.split_once('/').unwrap();
        let method = pool.get_service_by_name(service).unwrap().methods().find(|method| method.name() == name).unwrap();

        let mut fields: Json = serde_json::from_str(request).unwrap();
        if fields.get("user_id").is_some() {
            fields["user_id"] = Json::from(alice.as_str());
        }
        if fields.get("reservation_id").is_some() {
            fields["reservation_id"] = Json::from(reservation.as_str());
        }
        let message = DynamicMessage::deserialize(method.input(), fields).unwrap();
        let channel = tonic::transport::Channel::from_shared(format!("http://{}", replica.address)).unwrap();
        let mut client = tonic::client::Grpc::new(channel.connect().await.unwrap());
        client.ready().await.unwrap();
        let path = format!("/{service}/{name}").parse().unwrap();
        let found = client.unary(Request::new(message), path, Dynamic(method.output())).await.unwrap().into_inner();

        let options = SerializeOptions::new();
        let mut found = found.serialize_with_options(serde_json::value::Serializer, &options).unwrap();
        if let Some(id) = found.get("reservationId") {
            reservation = id.as_str().unwrap().to_owned();
        }
        let mut expected: Json = serde_json::from_str(answer).unwrap();
        mask(&mut found);
        mask(&mut expected);
        assert_eq!(found, expected, "{request}");
        run += 1;
    }
    assert_eq!(run, 7);
}

#[test]
fn the_catalogs_of_the_readme_are_valid() {
    let catalogs = blocks("yaml");
    assert_eq!(catalogs.len(), 1);
    for text in catalogs {
        let checked = catalog::check(text, jiff::tz::db()).unwrap_or_else(|problems| panic!("{problems}\n{text}"));
        assert_eq!(checked.warnings, [], "{text}");
    }
}

#[test]
fn the_python_of_the_readme_is_the_python_of_the_example() {
    let example = include_str!("../../examples/python/chat.py");
    let code: Vec<_> = example.lines().map(str::trim).collect();
    for line in blocks("python")[0].lines().map(str::trim) {
        assert!(code.contains(&line), "{line}");
    }
}

#[test]
fn the_flags_of_the_readme_are_those_of_the_program() {
    let output = tollgate().args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    // A flag stands further to the left than what the help says of it.
    let of_the_program =
        help.lines().filter_map(|line| line.strip_prefix("      --").or(line.strip_prefix("  -h, --")));
    let of_the_program: BTreeSet<_> = of_the_program
        .map(|line| line.split([' ', '=', '[']).next().unwrap().to_owned())
        .filter(|flag| flag != "help")
        .collect();
    assert!(of_the_program.len() >= 30, "{of_the_program:?}");
    let rows = README.lines().filter(|line| line.starts_with("| `--"));
    let of_the_readme: BTreeSet<_> = rows
        .flat_map(|row| row.split('|').nth(1).unwrap().split(','))
        .map(|flag| flag.trim().trim_matches('`').strip_prefix("--").expect("a flag").to_owned())
        .collect();
    assert_eq!(of_the_readme, of_the_program, "the flags of README and of `tollgate serve --help`");
}

#[test]
fn the_configuration_of_the_readme_is_shown_as_the_readme_says() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("tollgate.toml"), blocks("toml")[0]).unwrap();
    let shown =
        blocks("console").into_iter().find_map(|block| block.strip_prefix("$ TOLLGATE_LOG=warn tollgate ")).unwrap();
    let (arguments, lines) = shown.split_once('\n').unwrap();
    let mut command = tollgate();
    let output =
        command.args(arguments.split(' ')).env("TOLLGATE_LOG", "warn").current_dir(&directory).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let mut told = told.lines();
    for line in lines.lines().filter(|line| *line != "...") {
        assert!(told.any(|told| told == line), "{line}");
    }
    assert!(output.status.success());
}
