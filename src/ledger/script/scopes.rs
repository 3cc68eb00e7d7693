//! Gives each library of a script a scope of its own, as a Lua 5.1 function has room for 200 locals, and a script is one function.
//!
//! Only what later parts of the script name stays outside of that scope.

use std::collections::HashSet;
use std::fmt::Write as _;

use super::function::LATER;
use super::unused::words_of;

/// The line that `build.rs` writes between two parts of a script.
const BETWEEN: &str = "--~\n";

/// `source` with a block around each part but the first and the last one: the shebang stands before the one, and the other returns.
pub(super) fn narrow(source: &str) -> String {
    let parts: Vec<&str> = source.split(BETWEEN).collect();
    let [first, middle @ .., last] = &parts[..] else { return parts.concat() };
    let mut later: HashSet<&str> = words_of(last).collect();
    let mut scopes = Vec::new();
    for part in middle.iter().rev() {
        scopes.push(scope(part, &later));
        later.extend(words_of(part));
    }
    let mut narrowed = (*first).to_owned();
    narrowed.extend(scopes.into_iter().rev());
    narrowed.push_str(last);
    narrowed
}

/// The part in a block of its own. What `later` names is declared before it, and so are the functions of Redis, which a function binds when
/// it is first called.
fn scope(part: &str, later: &HashSet<&str>) -> String {
    let declared: Vec<_> = part.lines().filter_map(Declaration::of).collect();
    let is_exported = |one: &Declaration<'_>| !one.is_bound && one.names.iter().any(|name| later.contains(name));
    let exported: Vec<_> = declared.iter().filter(|one| is_exported(one)).flat_map(|one| &one.names).copied().collect();
    // Nothing is won.
    if declared.iter().all(|one| one.is_bound || is_exported(one)) {
        return part.to_owned();
    }
    let (mut before, mut block) = (String::new(), String::with_capacity(part.len()));
    if !exported.is_empty() {
        let _ = writeln!(before, "local {}", exported.join(", "));
    }
    for line in part.lines() {
        match Declaration::of(line) {
            Some(bound) if bound.is_bound => before.extend([line, "\n"]),
            // It is declared already.
            Some(declaration) if is_exported(&declaration) => {
                block.extend(declaration.assigned.into_iter().flat_map(|rest| [rest, "\n"]));
            }
            _ => block.extend([line, "\n"]),
        }
    }
    format!("{before}do\n{block}end\n")
}

/// A line that declares locals of the outer level.
struct Declaration<'a> {
    names: Vec<&'a str>,
    /// The line without `local`; none if it gives them no value.
    assigned: Option<&'a str>,
    /// True for a name of one of Redis's own functions.
    is_bound: bool,
}

impl<'a> Declaration<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let rest = line.strip_prefix("local ")?;
        if let Some(function) = rest.strip_prefix("function ") {
            let (name, _) = function.split_once('(')?;
            return Some(Self { names: vec![name], assigned: Some(rest), is_bound: false });
        }
        let (names, assigned, value) = match rest.split_once(" = ") {
            Some((names, value)) => (names, Some(rest), value),
            None => (rest, None, ""),
        };
        let is_bound = LATER.iter().any(|library| value.starts_with(library));
        Some(Self { names: names.split(", ").collect(), assigned, is_bound })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_one_part_names_is_declared_in_it() {
        let source = "#!lua\nlocal base = 1\n--~\nlocal table, count = {}, 0\nlocal find = string.find\nlocal later\nlocal function own()\n  return table\nend\n\
                      local function shown()\n  return own()\nend\n--~\nreturn shown(base, later)\n";
        let narrowed = "#!lua\nlocal base = 1\nlocal later, shown\nlocal find = string.find\ndo\nlocal table, count = {}, 0\nlocal function own()\n  return table\n\
                        end\nfunction shown()\n  return own()\nend\nend\nreturn shown(base, later)\n";
        assert_eq!(narrow(source), narrowed);
    }

    #[test]
    fn a_part_that_others_need_as_a_whole_stays_as_it_is() {
        let source = "#!lua\n--~\nlocal a = 1\n--~\nreturn a\n";
        assert_eq!(narrow(source), "#!lua\nlocal a = 1\nreturn a\n");
        assert_eq!(narrow("#!lua\nreturn 1\n"), "#!lua\nreturn 1\n");
    }
}
