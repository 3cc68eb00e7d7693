//! Reads `lua/formats.toml`, and makes from it what Lua and Rust read and write stored values, calls and answers with.

use std::error::Error;
use std::fmt::Write as _;

use serde::Deserialize;

/// The declarations of `lua/formats.toml`.
pub struct Declarations {
    /// Numbers that Lua and Rust share.
    pub constants: Vec<Constant>,
    /// The formats, in the order of the file.
    pub formats: Vec<Format>,
}

/// A number and what it is for.
pub struct Constant {
    pub name: String,
    pub value: i64,
    pub about: String,
}

/// One format: a name, what it is, and its fields in order.
pub struct Format {
    pub name: String,
    pub about: String,
    pub fields: Vec<Field>,
    /// The formats that stand before it in Lua, which reads all of them at once. Rust writes them one after the other.
    pub includes: Vec<String>,
    /// True if Lua reads it into one table, again and again.
    pub reused: bool,
    /// Other fields of that table, which are false again after each read.
    pub room: Vec<String>,
}

/// One field of a format.
pub struct Field {
    pub name: String,
    pub code: String,
    pub kind: Kind,
    pub about: String,
}

/// The encoding of a field.
#[derive(Clone, Copy)]
pub enum Kind {
    /// An integer of this many bytes that is not negative.
    Unsigned(usize),
    /// An integer of this many bytes.
    Signed(usize),
    /// A string of this many bytes.
    Bytes(usize),
    /// Bytes after their length, which takes this many bytes.
    Text(usize),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Declared {
    about: String,
    fields: Vec<DeclaredField>,
    #[serde(default)]
    includes: Vec<String>,
    #[serde(default)]
    reused: bool,
    #[serde(default)]
    room: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeclaredConstant {
    value: i64,
    about: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeclaredField {
    name: String,
    r#type: String,
    about: String,
}

/// Names that a field cannot have: the keywords of Lua, and the other locals of the generated functions.
const RESERVED: [&str; 25] = [
    "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if", "in", "local", "nil", "not", "or",
    "repeat", "return", "then", "true", "until", "while", "packed", "offset", "after", "reader",
];

/// The other keywords of Rust, which a field has with an underscore behind it.
const RUST_KEYWORDS: [&str; 40] = [
    "abstract", "as", "async", "await", "become", "box", "const", "continue", "crate", "dyn", "enum", "extern",
    "final", "fn", "gen", "impl", "let", "loop", "macro", "match", "mod", "move", "mut", "override", "priv", "pub",
    "ref", "self", "static", "struct", "super", "trait", "try", "type", "typeof", "unsafe", "unsized", "use",
    "virtual", "where",
];

/// Reads the text of `lua/formats.toml`.
pub fn parse(text: &str) -> Result<Declarations, Box<dyn Error>> {
    let mut table: toml::Table = text.parse()?;
    let mut constants = Vec::new();
    let declared = table.remove("constants").and_then(|value| value.try_into::<toml::Table>().ok()).unwrap_or_default();
    for (name, value) in declared {
        let DeclaredConstant { value, about } =
            value.try_into().map_err(|error| format!("formats.toml: constant {name}: {error}"))?;
        constants.push(Constant { name, value, about });
    }
    let mut formats = Vec::new();
    for (name, value) in table {
        let mut declared: Declared = value.try_into().map_err(|error| format!("formats.toml: {name}: {error}"))?;
        let mut fields = Vec::new();
        for field in std::mem::take(&mut declared.fields) {
            if RESERVED.contains(&field.name.as_str()) {
                return Err(format!("formats.toml: {name}: a field cannot be named {}", field.name).into());
            }
            let kind = kind(&field.r#type).ok_or_else(|| format!("formats.toml: {name}: type {}", field.r#type))?;
            fields.push(Field { name: field.name, code: field.r#type, kind, about: field.about });
        }
        let Declared { about, includes, reused, room, .. } = declared;
        if !reused && !room.is_empty() {
            return Err(format!("formats.toml: {name}: only a table that is reused has room").into());
        }
        formats.push(Format { name, about, fields, includes, reused, room });
    }
    Ok(Declarations { constants, formats })
}

fn kind(code: &str) -> Option<Kind> {
    let width = |prefix: &str| code.strip_prefix(prefix)?.parse::<usize>().ok();
    match (width("text"), width("u"), width("i"), width("b")) {
        (Some(width @ (1 | 2 | 4)), ..) => Some(Kind::Text(width)),
        (_, Some(width @ 1..=7), ..) => Some(Kind::Unsigned(width)),
        (_, _, Some(width @ 1..=7), _) => Some(Kind::Signed(width)),
        (_, _, _, Some(width @ 1..)) => Some(Kind::Bytes(width)),
        _ => None,
    }
}

impl Format {
    /// `IdleCounter` for `idle_counter`.
    fn type_name(&self) -> String {
        self.name.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect()
    }

    /// Its fields as Lua reads them, after those of the formats that it includes.
    fn lua_fields<'a>(&'a self, formats: &'a [Format]) -> Vec<&'a Field> {
        let included = self.includes.iter().flat_map(|name| {
            let format = formats.iter().find(|format| format.name == *name);
            &format.unwrap_or_else(|| panic!("formats.toml: {}: there is no format {name}", self.name)).fields
        });
        included.chain(&self.fields).collect()
    }

    /// The format string of Lua's `struct`.
    fn lua_format(fields: &[&Field]) -> String {
        let codes = fields.iter().map(|field| match field.kind {
            Kind::Unsigned(1) => "B".to_owned(),
            Kind::Unsigned(width) => format!("I{width}"),
            Kind::Signed(width) => format!("i{width}"),
            Kind::Bytes(width) => format!("c{width}"),
            Kind::Text(1) => "Bc0".to_owned(),
            Kind::Text(2) => "Hc0".to_owned(),
            Kind::Text(width) => format!("I{width}c0"),
        });
        format!("'<{}'", codes.collect::<String>())
    }

    /// Returns its size in bytes, if that is fixed.
    pub fn size(&self) -> Option<usize> {
        self.fields
            .iter()
            .map(|field| match field.kind {
                Kind::Unsigned(width) | Kind::Signed(width) | Kind::Bytes(width) => Some(width),
                Kind::Text(_) => None,
            })
            .sum()
    }
}

/// A piece of the Lua library `formats`: a local and its text.
struct Piece {
    name: String,
    text: String,
}

fn lua_pieces(formats: &[Format], format: &Format) -> [Piece; 3] {
    let fields = format.lua_fields(formats);
    let (name, codes) = (&format.name, Format::lua_format(&fields));
    let constant = format!("{}_FORMAT", name.to_uppercase());
    let locals: Vec<_> = fields.iter().map(|field| field.name.as_str()).collect();
    let values = fields.iter().map(|field| match field.kind {
        Kind::Text(_) => format!("#value.{0}, value.{0}", field.name),
        _ => format!("value.{}", field.name),
    });
    let values: Vec<_> = values.collect();
    let read = if format.reused { read_again(format, &locals, &codes) } else { read_anew(name, &locals, &codes) };
    let write =
        format!("local function write_{name}(value)\n  return pack_struct({codes}, {})\nend\n", values.join(", "));
    [
        Piece { text: format!("local {constant} = {codes}\n"), name: constant },
        Piece { name: format!("read_{name}"), text: read },
        Piece { name: format!("write_{name}"), text: write },
    ]
}

/// The function that reads a format into a new table.
fn read_anew(name: &str, fields: &[&str], codes: &str) -> String {
    let pairs: Vec<_> = fields.iter().map(|field| format!("{field} = {field}")).collect();
    format!(
        "local function read_{name}(packed, offset)\n  local {}, after = unpack_struct({codes}, packed, offset or 1)\n  \
         return {{ {} }}, after\nend\n",
        fields.join(", "),
        pairs.join(", ")
    )
}

/// The function that reads a format into the same table as before, which costs a third.
fn read_again(format: &Format, fields: &[&str], codes: &str) -> String {
    let (name, room) = (&format.name, &format.room);
    let all: Vec<_> = fields.iter().copied().chain(room.iter().map(String::as_str)).collect();
    let empty: Vec<_> = all.iter().map(|field| format!("{field} = false")).collect();
    let into: Vec<_> = fields.iter().map(|field| format!("value.{field}")).collect();
    let cleared: Vec<_> = room.iter().map(|field| format!("value.{field}")).collect();
    let cleared = match room.len() {
        0 => String::new(),
        count => format!("  {} = {}\n", cleared.join(", "), vec!["false"; count].join(", ")),
    };
    format!(
        "local {name}_table = {{ {} }}\nlocal function read_{name}(packed, offset)\n  local value, after = {name}_table, nil\n  \
         {}, after = unpack_struct({codes}, packed, offset or 1)\n{cleared}  return value, after\nend\n",
        empty.join(", "),
        into.join(", ")
    )
}

/// The Lua library `formats`: of each format `<NAME>_FORMAT`, `read_<name>(packed, offset)`, which returns a table and the offset after
/// it, and `write_<name>(value)`, which returns the bytes. Only what `script` names, if there is one.
/// The constants come first.
pub fn lua(declarations: &Declarations, script: Option<&str>) -> String {
    let formats = &declarations.formats;
    let is_word = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let words: Option<std::collections::HashSet<&str>> =
        script.map(|text| text.split(|character| !is_word(character)).collect());
    let mut library = String::new();
    let constants = declarations
        .constants
        .iter()
        .map(|Constant { name, value, .. }| Piece { name: name.clone(), text: format!("local {name} = {value}\n") });
    for piece in constants.chain(formats.iter().flat_map(|format| lua_pieces(formats, format))) {
        if words.as_ref().is_none_or(|words| words.contains(piece.name.as_str())) {
            library.push_str(&piece.text);
        }
    }
    library
}

/// The name of a field in Rust.
fn rust_name(name: &str) -> String {
    if RUST_KEYWORDS.contains(&name) { format!("{name}_") } else { name.to_owned() }
}

/// The structs of Rust, which `src/ledger/formats.rs` includes.
pub fn rust(declarations: &Declarations) -> Result<String, std::fmt::Error> {
    let mut code = String::new();
    for Constant { name, value, about } in &declarations.constants {
        writeln!(code, "/// {}.\npub const {name}: i64 = {value};\n", sentence(about))?;
    }
    for format in declarations.formats.iter().filter(|format| !format.fields.is_empty()) {
        let name = format.type_name();
        let (mut fields, mut reads, mut writes) = (String::new(), String::new(), String::new());
        for field in &format.fields {
            let known = rust_name(&field.name);
            let (held, read, write) = match field.kind {
                Kind::Unsigned(width) => (
                    "i64".to_owned(),
                    format!("reader.integer({width})?"),
                    format!("push_unsigned(bytes, self.{known}, {width})"),
                ),
                Kind::Signed(width) => (
                    "i64".to_owned(),
                    format!("reader.signed({width})?"),
                    format!("push_signed(bytes, self.{known}, {width})"),
                ),
                Kind::Bytes(width) => (
                    format!("[u8; {width}]"),
                    "array(reader)?".to_owned(),
                    format!("bytes.extend_from_slice(&self.{known})"),
                ),
                Kind::Text(width) => (
                    "Vec<u8>".to_owned(),
                    format!("reader.blob({width})?.to_vec()"),
                    format!("push_blob(bytes, &self.{known}, {width})"),
                ),
            };
            writeln!(fields, "    /// {}.\n    pub {known}: {held},", sentence(&field.about))?;
            writeln!(reads, "            {known}: {read},")?;
            writeln!(writes, "        {write};")?;
        }
        write!(
            code,
            "/// {about}.\n#[derive(Debug, Clone, PartialEq, Eq, Default)]\npub struct {name} {{\n{fields}}}\n\n\
             impl {name} {{\n    /// How many bytes it takes, if that is fixed.\n    pub const SIZE: Option<usize> = {size:?};\n\n    \
             /// Reads it from the front.\n    ///\n    /// # Errors\n    /// [`Misfit::TooShort`].\n    \
             pub fn read(reader: &mut Reader<'_>) -> Result<Self, Misfit> {{\n        Ok(Self {{\n{reads}        }})\n    }}\n\n    \
             /// Appends it.\n    ///\n    /// # Panics\n    /// If a value does not fit into its field: callers have bounded them.\n    \
             pub fn write(&self, bytes: &mut Vec<u8>) {{\n{writes}    }}\n}}\n\n",
            about = sentence(&format.about),
            size = format.size(),
        )?;
    }
    Ok(code)
}

/// Formats `about` as a sentence of a doc comment, without its full stop.
fn sentence(about: &str) -> String {
    let mut characters = about.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

/// Calls of `round_trip` with the smallest and the largest values of each format, which the tests of `src/ledger/formats.rs` include.
pub fn rust_tests(formats: &[Format]) -> Result<String, std::fmt::Error> {
    let mut code = String::from("#[test]\nfn every_format_is_read_as_it_was_written() {\n");
    for format in formats.iter().filter(|format| !format.fields.is_empty()) {
        let name = format.type_name();
        for largest in [false, true] {
            let fields = format.fields.iter().map(|field| {
                let value = match field.kind {
                    Kind::Unsigned(width) if largest => format!("(1 << {}) - 1", 8 * width),
                    Kind::Signed(width) if largest => format!("(1 << {}) - 1", 8 * width - 1),
                    Kind::Signed(width) => format!("-(1 << {})", 8 * width - 1),
                    Kind::Unsigned(_) => "0".to_owned(),
                    Kind::Bytes(width) => format!("[{}; {width}]", if largest { 255 } else { 0 }),
                    Kind::Text(width) if largest => format!("vec![254; {}]", if width == 1 { 255 } else { 65_535 }),
                    Kind::Text(_) => "Vec::new()".to_owned(),
                };
                format!("{}: {value}", rust_name(&field.name))
            });
            let fields: Vec<_> = fields.collect();
            writeln!(
                code,
                "    round_trip({name}::SIZE, &{name} {{ {} }}, {name}::write, {name}::read);",
                fields.join(", ")
            )?;
        }
    }
    code.push_str("}\n");
    Ok(code)
}
