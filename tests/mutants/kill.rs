//! Kills mutants: runs cases against a ledger with a wrong script until model and scripts differ.

use std::path::Path;
use std::sync::Arc;

use tollgate::ledger::{Ledger, Script, Scripts};

use crate::campaign;
use crate::direct;
use crate::generate::Case;
use crate::list::Mutant;
use crate::support::{redis, stepped_scripts, with_stepped_clock};

/// The scripts with the mutant in them, made anew for each call, and as functions, which use their tables again.
struct Mutated {
    scripts: &'static Scripts,
    functions: &'static Scripts,
}

/// # Panics
/// If the text is not in the file exactly once: the list is out of date.
fn mutated(mutant: &Mutant) -> Mutated {
    let (file, text, replacement) = mutant;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("lua").join(file).with_extension("lua");
    let source = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(source.matches(text).count(), 1, "{file} has this once: {text}");
    let code = with_stepped_clock(&code_of(&source));
    let wrong = code.replacen(text, replacement, 1);
    // The whole file, as others may have the same text.
    let scripts = stepped_scripts().changed(|script| script.source.replacen(&code, &wrong, 1));
    let differ = scripts.all().iter().zip(stepped_scripts().all()).any(|(one, two)| one.body != two.body);
    assert!(differ, "no script has this of {file}: {text}");
    let functions = scripts.clone().as_functions();
    // As long as the program: there are few.
    Mutated { scripts: Box::leak(Box::new(scripts)), functions: Box::leak(Box::new(functions)) }
}

/// What `build.rs` takes of a file: neither the shebang nor lines that are only comments.
fn code_of(source: &str) -> String {
    let is_code =
        |line: &&str| !["--", "#!"].iter().any(|start| line.trim_start().starts_with(start)) && !line.trim().is_empty();
    source.lines().filter(is_code).flat_map(|line| [line, "\n"]).collect()
}

/// The scripts that the mutant has changed.
fn changed(scripts: &Scripts) -> impl Iterator<Item = &Script> {
    let pairs = scripts.all().into_iter().zip(stepped_scripts().all());
    pairs.filter(|(one, two)| one.body != two.body).map(|(one, _)| one)
}

/// A mutant is wrong, but not broken: Redis takes it.
async fn is_lua(mutated: &Mutated) -> bool {
    let mut load = redis::pipe();
    for script in changed(mutated.scripts) {
        load.cmd("SCRIPT").arg("LOAD").arg(&script.body).ignore();
    }
    for function in changed(mutated.functions).filter_map(|script| script.function.as_ref()) {
        load.cmd("FUNCTION").arg("LOAD").arg("REPLACE").arg(&function.library).ignore();
    }
    load.query_async::<()>(&mut redis().await).await.is_ok()
}

/// Takes its functions from Redis.
async fn forget(mutated: &Mutated) {
    for function in changed(mutated.functions).filter_map(|script| script.function.as_ref()) {
        let mut delete = redis::cmd("FUNCTION");
        delete.arg("DELETE").arg(&function.name);
        let () = delete.query_async(&mut redis().await).await.expect("the function can be deleted");
    }
}

/// So many cases come before the direct checks, which take as long as a few of them.
const FIRST_CASES: usize = 4;

/// After how many operations the mutant is found out, 0 by a direct check; `None` if it never is. Where wrong scripts make model or checks
/// panic, that is found out as well.
pub async fn kill(mutant: &Mutant, cases: &Arc<[Case]>, ledger: &Ledger) -> Option<usize> {
    let mutated = mutated(mutant);
    assert!(is_lua(&mutated).await, "this is no Lua: {mutant:?}");
    // Redis runs either.
    let ledgers = [mutated.functions, mutated.scripts].map(|scripts| ledger.clone().with_scripts(scripts));
    let killed = found_out(cases, &ledgers).await;
    forget(&mutated).await;
    killed
}

async fn found_out(cases: &Arc<[Case]>, ledgers: &[Ledger; 2]) -> Option<usize> {
    let mut operations = 0;
    for index in 0..cases.len() {
        if index == FIRST_CASES.min(cases.len() - 1) {
            let ledger = ledgers[0].clone();
            let wrong = tokio::spawn(async move { direct::wrong(&ledger).await }).await;
            if !matches!(wrong, Ok(None)) {
                return Some(0);
            }
        }
        let (cases, ledger) = (Arc::clone(cases), ledgers[index % 2].clone());
        let length = cases[index].operations.len();
        let compared = tokio::spawn(async move {
            match campaign::compare(&cases[index], &ledger).await {
                Ok((_, real)) => {
                    real.clean_up().await;
                    Ok(())
                }
                Err(difference) => Err(difference.after),
            }
        });
        match compared.await {
            Ok(Ok(())) => operations += length,
            Ok(Err(after)) => return Some(operations + after),
            Err(_) => return Some(operations + length),
        }
    }
    None
}
