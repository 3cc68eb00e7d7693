//! Makes `docs/reference/redis-layout.md`: the text of `build/redis-layout.md`, with a table in the place of each `{format}`.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Write as _;

use crate::formats::{Constant, Declarations, Format};

/// Makes the page. Each format that has fields of its own must have its place in the text.
pub fn page(text: &str, declarations: &Declarations) -> Result<String, Box<dyn Error>> {
    let formats = &declarations.formats;
    let with_fields = formats.iter().filter(|format| !format.fields.is_empty());
    let mut missing: BTreeSet<&str> = with_fields.map(|format| format.name.as_str()).collect();
    let mut page = String::new();
    for line in text.lines() {
        if line == "{constants}" {
            constants(&mut page, &declarations.constants)?;
            continue;
        }
        let name = line.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        match name.map(|name| formats.iter().find(|format| format.name == name).ok_or(name)) {
            Some(Ok(format)) => {
                missing.remove(format.name.as_str());
                table(&mut page, format)?;
            }
            Some(Err(name)) => return Err(format!("build/redis-layout.md: there is no format {name}").into()),
            None => writeln!(page, "{line}")?,
        }
    }
    if missing.is_empty() { Ok(page) } else { Err(format!("build/redis-layout.md: {missing:?} have no place").into()) }
}

fn constants(page: &mut String, constants: &[Constant]) -> std::fmt::Result {
    writeln!(page, "| constant | value | |\n|---|---|---|")?;
    for Constant { name, value, about } in constants {
        writeln!(page, "| `{name}` | {value} | {about} |")?;
    }
    Ok(())
}

fn table(page: &mut String, format: &Format) -> std::fmt::Result {
    let size =
        format.size().filter(|_| format.includes.is_empty()).map_or_else(String::new, |size| format!(", {size} bytes"));
    writeln!(page, "### {}{size}\n\n{}\n", format.name, wrapped(&format!("{}.", format.about)))?;
    if !format.includes.is_empty() {
        let after: Vec<_> = format.includes.iter().map(|name| format!("`{name}`")).collect();
        writeln!(page, "{}\n", wrapped(&format!("It begins with {}.", after.join(", "))))?;
    }
    if format.fields.is_empty() {
        return Ok(());
    }
    writeln!(page, "| field | type | |\n|---|---|---|")?;
    for field in &format.fields {
        writeln!(page, "| `{}` | `{}` | {} |", field.name, field.code, field.about)?;
    }
    writeln!(page)
}

/// Breaks a paragraph at 100 columns.
fn wrapped(text: &str) -> String {
    let mut lines = String::new();
    let mut column = 0;
    for word in text.split_whitespace() {
        let width = word.chars().count();
        let fits = column + 1 + width <= 100;
        if column > 0 {
            lines.push(if fits { ' ' } else { '\n' });
        }
        column = if column > 0 && fits { column + 1 + width } else { width };
        lines.push_str(word);
    }
    lines
}
