//! The proto file as its readers and code generators see it: every part has a comment, and every language a package.

use std::collections::BTreeMap;

use prost::Message as _;
use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};

// The numbers of fields in google/protobuf/descriptor.proto, of which the path of a comment is made.
const MESSAGE: i32 = 4;
const ENUM: i32 = 5;
const SERVICE: i32 = 6;
const FIELD_OF_MESSAGE: i32 = 2;
const NESTED: i32 = 3;
const ENUM_OF_MESSAGE: i32 = 4;
const ONEOF_OF_MESSAGE: i32 = 8;
const VALUE_OF_ENUM: i32 = 2;
const METHOD_OF_SERVICE: i32 = 2;

fn contract() -> FileDescriptorProto {
    let files = FileDescriptorSet::decode(tollgate::grpc::v1::FILE_DESCRIPTOR_SET).unwrap().file;
    files.into_iter().find(|file| file.package() == "tollgate.v1").expect("the package is there")
}

/// The parts of a message, each with the path of its comment.
fn parts(message: &DescriptorProto, path: &[i32], name: &str, found: &mut Vec<(String, Vec<i32>)>) {
    let within = |more: &[i32]| [path, more].concat();
    // The entries of a map are made by the compiler.
    if message.options.as_ref().is_some_and(|options| options.map_entry()) {
        return;
    }
    found.push((name.to_owned(), path.to_vec()));
    for (index, field) in (0..).zip(&message.field) {
        found.push((format!("{name}.{}", field.name()), within(&[FIELD_OF_MESSAGE, index])));
    }
    for (index, oneof) in (0..).zip(&message.oneof_decl) {
        // That of an `optional` field is made by the compiler.
        let made = message.field.iter().any(|field| field.oneof_index == Some(index) && field.proto3_optional());
        if !made {
            found.push((format!("{name}.{}", oneof.name()), within(&[ONEOF_OF_MESSAGE, index])));
        }
    }
    for (index, nested) in (0..).zip(&message.nested_type) {
        parts(nested, &within(&[NESTED, index]), &format!("{name}.{}", nested.name()), found);
    }
    for (index, nested) in (0..).zip(&message.enum_type) {
        found.push((format!("{name}.{}", nested.name()), within(&[ENUM_OF_MESSAGE, index])));
    }
}

#[test]
fn every_part_of_the_contract_has_a_comment() {
    let file = contract();
    let locations = file.source_code_info.clone().expect("comments are kept for reflection").location;
    let comments: BTreeMap<_, _> =
        locations.iter().map(|location| (&location.path[..], location.leading_comments().trim())).collect();
    let mut found = Vec::new();
    for (index, message) in (0..).zip(&file.message_type) {
        parts(message, &[MESSAGE, index], message.name(), &mut found);
    }
    for (index, one) in (0..).zip(&file.enum_type) {
        found.push((one.name().to_owned(), vec![ENUM, index]));
        for (value, name) in (0..).zip(&one.value) {
            found.push((name.name().to_owned(), vec![ENUM, index, VALUE_OF_ENUM, value]));
        }
    }
    let mut methods = 0;
    for (index, service) in (0..).zip(&file.service) {
        found.push((service.name().to_owned(), vec![SERVICE, index]));
        for (method, name) in (0..).zip(&service.method) {
            let path = vec![SERVICE, index, METHOD_OF_SERVICE, method];
            let says = comments.get(&path[..]).copied().unwrap_or_default();
            assert!(says.to_lowercase().contains("retry"), "{} says what a retry does", name.name());
            found.push((name.name().to_owned(), path));
            methods += 1;
        }
    }
    assert!(found.len() > 150 && methods >= 12, "{} parts, {methods} of them methods", found.len());
    let bare: Vec<_> = found
        .iter()
        .filter(|(_, path)| comments.get(&path[..]).is_none_or(|comment| comment.is_empty()))
        .map(|(name, _)| name)
        .collect();
    assert!(bare.is_empty(), "without a comment: {bare:?}");
}

#[test]
fn code_generators_find_a_package_for_each_language() {
    let options = contract().options.expect("options");
    assert_eq!(options.go_package(), "tollgate/v1;tollgatev1");
    assert_eq!((options.java_package(), options.java_multiple_files()), ("tollgate.v1", true));
    assert_eq!((options.java_outer_classname(), options.csharp_namespace()), ("TollgateProto", "Tollgate.V1"));
}
