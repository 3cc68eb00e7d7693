//! `docs/reference/api.md`: the contract as a page, made of the descriptors and comments of the proto file.

use std::collections::BTreeMap;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};

use super::{hold, wrap};

const OPENING: &str = "This page is generated from `proto/tollgate/v1/tollgate.proto`. `./dev docs` writes it anew. \
                       [Errors](errors.md) explains every reason. [Contract](contract.md) says what happens in which case.";

// The numbers of fields in google/protobuf/descriptor.proto, of which the path of a comment is made.
const SYNTAX: i32 = 12;
const MESSAGE: i32 = 4;
const ENUM: i32 = 5;
const SERVICE: i32 = 6;
const FIELD_OF_MESSAGE: i32 = 2;
const VALUE_OF_ENUM: i32 = 2;
const METHOD_OF_SERVICE: i32 = 2;

/// The file of the contract, and its comments by path.
struct Contract {
    file: FileDescriptorProto,
    comments: BTreeMap<Vec<i32>, String>,
}

impl Contract {
    fn read() -> Self {
        let files = FileDescriptorSet::decode(tollgate::grpc::v1::FILE_DESCRIPTOR_SET).unwrap().file;
        let file = files.into_iter().find(|file| file.package() == "tollgate.v1").expect("the package is there");
        let locations = &file.source_code_info.as_ref().expect("comments are kept").location;
        let comments =
            locations.iter().map(|location| (location.path.clone(), location.leading_comments().to_owned())).collect();
        Self { file, comments }
    }

    fn comment(&self, path: &[i32]) -> &str {
        self.comments.get(path).map(String::as_str).unwrap_or_default()
    }

    /// A comment in one line, for a table.
    fn line(&self, path: &[i32]) -> String {
        let comment = self.comment(path).split_whitespace().collect::<Vec<_>>().join(" ");
        comment.trim_end_matches('.').replace('|', "\\|")
    }
}

/// Paragraphs and lists of a comment, broken at 100 columns.
fn paragraphs(comment: &str) -> String {
    let mut blocks: Vec<String> = Vec::new();
    let mut after_gap = true;
    for line in comment.lines().map(str::trim) {
        match blocks.last_mut() {
            _ if line.is_empty() => {}
            Some(block) if !after_gap && !line.starts_with("- ") => *block = format!("{block} {line}"),
            _ => blocks.push(line.to_owned()),
        }
        after_gap = line.is_empty();
    }
    let is_item = |block: &String| block.starts_with("- ");
    let mut text = String::new();
    for (index, block) in blocks.iter().enumerate() {
        if index > 0 && !(is_item(block) && is_item(&blocks[index - 1])) {
            text.push('\n');
        }
        text.push_str(&wrap(block, if is_item(block) { "  " } else { "" }));
        text.push('\n');
    }
    text
}

fn link(name: &str) -> String {
    let short = name.rsplit('.').next().unwrap_or(name);
    if name.starts_with(".tollgate.v1.") {
        format!("[{short}](#{})", short.to_lowercase())
    } else {
        format!("`{short}`")
    }
}

fn scalar(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => link(field.type_name()),
        Type::Double => "`double`".to_owned(),
        Type::Bool => "`bool`".to_owned(),
        Type::Int32 => "`int32`".to_owned(),
        Type::String => "`string`".to_owned(),
        other => panic!("say how {other:?} is shown"),
    }
}

fn type_of(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let entry = message.nested_type.iter().find(|nested| {
        let is_entry = nested.options.as_ref().is_some_and(|options| options.map_entry());
        is_entry && field.type_name().ends_with(&format!(".{}", nested.name()))
    });
    if let Some(entry) = entry {
        return format!("map of {} to {}", scalar(&entry.field[0]), scalar(&entry.field[1]));
    }
    let oneof = field.oneof_index.filter(|_| !field.proto3_optional());
    match (field.label(), oneof) {
        (Label::Repeated, _) => format!("list of {}", scalar(field)),
        (_, Some(index)) => {
            let name = message.oneof_decl[usize::try_from(index).unwrap()].name();
            format!("{}, one of `{name}`", scalar(field))
        }
        _ if field.proto3_optional() => format!("optional {}", scalar(field)),
        _ => scalar(field),
    }
}

fn message(contract: &Contract, index: i32, message: &DescriptorProto) -> String {
    let comment = paragraphs(contract.comment(&[MESSAGE, index]));
    let mut text = format!("### {}\n\n{comment}\n", message.name());
    if message.field.is_empty() {
        return text + "It has no fields.\n\n";
    }
    text.push_str("| field | type | meaning |\n|---|---|---|\n");
    for (number, field) in (0..).zip(&message.field) {
        let meaning = contract.line(&[MESSAGE, index, FIELD_OF_MESSAGE, number]);
        text.push_str(&format!("| `{}` | {} | {meaning} |\n", field.name(), type_of(message, field)));
    }
    text + "\n"
}

fn enumeration(contract: &Contract, index: i32, one: &EnumDescriptorProto) -> String {
    let comment = paragraphs(contract.comment(&[ENUM, index]));
    let mut text = format!("### {}\n\n{comment}\n| value | number | meaning |\n|---|---|---|\n", one.name());
    for (number, value) in (0..).zip(&one.value) {
        let meaning = contract.line(&[ENUM, index, VALUE_OF_ENUM, number]);
        text.push_str(&format!("| `{}` | {} | {meaning} |\n", value.name(), value.number()));
    }
    text + "\n"
}

fn service(contract: &Contract, index: i32, service: &ServiceDescriptorProto) -> String {
    let mut text = format!("## {}\n\n{}\n", service.name(), paragraphs(contract.comment(&[SERVICE, index])));
    for (number, method) in (0..).zip(&service.method) {
        let comment = paragraphs(contract.comment(&[SERVICE, index, METHOD_OF_SERVICE, number]));
        let (input, output) = (link(method.input_type()), link(method.output_type()));
        text.push_str(&format!("### {}\n\nTakes {input}, answers {output}.\n\n{comment}\n", method.name()));
    }
    text
}

#[test]
fn the_page_of_the_api_is_made_of_the_proto() {
    let contract = Contract::read();
    let general = paragraphs(contract.comment(&[SYNTAX]));
    assert!(general.len() > 500, "the proto begins with what holds for every call");
    let mut page = format!("# API\n\n{}\n\n{general}\n", wrap(OPENING, ""));
    for (index, one) in (0..).zip(&contract.file.service) {
        page.push_str(&service(&contract, index, one));
    }
    page.push_str("## Messages\n\n");
    for (index, one) in (0..).zip(&contract.file.message_type) {
        page.push_str(&message(&contract, index, one));
    }
    page.push_str("## Enums\n\n");
    for (index, one) in (0..).zip(&contract.file.enum_type) {
        page.push_str(&enumeration(&contract, index, one));
    }
    hold("docs/reference/api.md", &(page.trim_end().to_owned() + "\n"));
}
