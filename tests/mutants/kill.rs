//! Kills mutants: runs cases against a ledger with a wrong script until model and scripts differ.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::OnceCell;
use tollgate::ledger::{Ledger, Script, Scripts};

use crate::campaign;
use crate::direct;
use crate::generate::Case;
use crate::list::Mutant;
use crate::support::{redis, stepped_scripts, with_stepped_clock};
use crate::witnesses::Witness;

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

/// The cases of the model. The one at `index` has the seed `index + 1`.
pub struct Cases {
    cases: Vec<Case>,
    /// That the scripts as they are pass a case, asked before anything is made of a mutant that does not.
    sound: Vec<OnceCell<()>>,
    /// With the scripts as they are.
    ledger: Ledger,
}

impl Cases {
    pub fn new(cases: Vec<Case>, ledger: Ledger) -> Self {
        let sound = cases.iter().map(|_| OnceCell::new()).collect();
        Self { cases, sound, ledger }
    }

    /// Whether model and scripts differ in a case. Where wrong scripts make the model panic, they do.
    async fn differ(self: &Arc<Self>, index: usize, ledgers: &[Ledger; 2]) -> bool {
        let (cases, ledger) = (Arc::clone(self), ledgers[index % 2].clone());
        let compared = tokio::spawn(async move { compare(&cases.cases[index], &ledger).await });
        let differ = !matches!(compared.await, Ok(Ok(())));
        if differ {
            let sound = || async {
                let compared = compare(&self.cases[index], &self.ledger).await;
                assert_eq!(compared, Ok(()), "seed {}: without a mutant", index + 1);
            };
            self.sound[index].get_or_init(sound).await;
        }
        differ
    }
}

/// What differs between model and scripts in a case, as an error.
async fn compare(case: &Case, ledger: &Ledger) -> Result<(), String> {
    let (_, real) = campaign::compare(case, ledger).await.map_err(|difference| difference.story)?;
    real.clean_up().await;
    Ok(())
}

/// What finds the mutant out; `None` if nothing does. The witness is asked first.
pub async fn kill(mutant: &Mutant, witness: Option<&Witness>, cases: &Arc<Cases>) -> Option<Witness> {
    let mutated = mutated(mutant);
    assert!(is_lua(&mutated).await, "this is no Lua: {mutant:?}");
    // Redis runs either.
    let ledgers = [mutated.functions, mutated.scripts].map(|scripts| cases.ledger.clone().with_scripts(scripts));
    let killed = found_out(witness, cases, &ledgers).await;
    forget(&mutated).await;
    killed
}

async fn found_out(witness: Option<&Witness>, cases: &Arc<Cases>, ledgers: &[Ledger; 2]) -> Option<Witness> {
    if let Some(witness) = witness {
        let killed = match witness {
            Witness::Direct(name) => {
                let (name, ledger) = (name.clone(), ledgers[0].clone());
                // A check that panics has failed.
                !matches!(tokio::spawn(async move { direct::fails(&ledger, &name).await }).await, Ok(false))
            }
            Witness::Case(seed) => {
                let index = usize::try_from(seed - 1).expect("a seed of the cases");
                index < cases.cases.len() && cases.differ(index, ledgers).await
            }
        };
        if killed {
            return Some(witness.clone());
        }
    }
    for index in 0..cases.cases.len() {
        if index == FIRST_CASES.min(cases.cases.len() - 1)
            && let Some(what) = wrong(&ledgers[0]).await
        {
            return Some(Witness::Direct(what));
        }
        if cases.differ(index, ledgers).await {
            return Some(Witness::Case(index as u64 + 1));
        }
    }
    None
}

/// The direct check that fails.
async fn wrong(ledger: &Ledger) -> Option<String> {
    for name in direct::names(ledger) {
        let ledger = ledger.clone();
        let fails = tokio::spawn(async move { direct::fails(&ledger, name).await });
        // A check that panics has failed.
        if !matches!(fails.await, Ok(false)) {
            return Some(name.to_owned());
        }
    }
    None
}
