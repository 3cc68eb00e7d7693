//! A script as a Redis function. A function is created once, while a script is created for each call. A function can
//! keep its decoded messages.

use super::Script;

/// A Redis function that does what a script does.
#[derive(Debug, Clone)]
pub struct Function {
    /// The name for `FCALL`. It contains the version, so that replicas of two versions do not use each other's
    /// functions.
    pub name: String,
    /// The library for `FUNCTION LOAD`, with this one function.
    pub library: String,
}

/// The globals that do not exist yet while a library is loaded.
pub(super) const LATER: [&str; 7] = ["redis.", "cmsgpack.", "struct.", "string.", "table.", "math.", "_G."];

impl Function {
    /// The function of a script that ends in `return each(...)`; `None` for others.
    pub(super) fn of(script: &Script) -> Option<Self> {
        let (shebang, body) = script.body.split_once('\n')?;
        let (body, last) = body.trim_end().rsplit_once('\n')?;
        let result = last.strip_prefix("return each(")?;
        let flags = shebang.split_once("flags=").map_or("", |(_, flags)| flags);
        let flags: Vec<_> = flags.split(',').filter(|flag| !flag.is_empty()).map(|flag| format!("'{flag}'")).collect();
        let (mut code, mut bound) = (String::new(), String::new());
        for line in body.lines() {
            let names = line.strip_prefix("local ").and_then(|rest| rest.split_once(" = "));
            match names.filter(|(_, value)| LATER.iter().any(|library| value.starts_with(library))) {
                Some((names, value)) => {
                    code.extend(["local ", names, "\n"]);
                    bound.extend(["      ", names, " = ", value, "\n"]);
                }
                None => code.extend([line, "\n"]),
            }
        }
        let version = &script.sha1[..16];
        let name = format!("tollgate_{}_{version}", script.name);
        let library = format!(
            "#!lua name={name}\nlocal KEYS, ARGV\n{code}\
             redis.register_function{{\n  function_name = '{name}',\n  flags = {{ {} }},\n  callback = function(keys, arguments)\n    \
             KEYS, ARGV = keys, arguments\n    if not call then\n{bound}    end\n    return each({result}\n  end,\n}}\n",
            flags.join(", ")
        );
        Some(Self { name, library })
    }
}

#[cfg(test)]
mod tests {
    use super::super::scripts;

    #[test]
    fn scripts_that_take_several_calls_are_functions_as_well() {
        for script in scripts().all() {
            assert_eq!(script.function.is_some(), script.batches, "{}", script.name);
            let Some(function) = &script.function else { continue };
            let allowed = script.body.contains("flags=allow-oom");
            assert_eq!(function.library.contains("flags = { 'allow-oom' }"), allowed, "{}", script.name);
            let reads = script.body.contains("flags=no-writes");
            assert_eq!(function.library.contains("flags = { 'no-writes' }"), reads, "{}", script.name);
            assert!(function.name.contains(script.name) && function.name.ends_with(&script.sha1[..16]));
        }
    }
}
