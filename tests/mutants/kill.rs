//! Kills mutants: runs cases against a ledger with a wrong script until model and scripts differ.

use std::path::Path;

use tollgate::ledger::{Ledger, Scripts, scripts};

use crate::campaign;
use crate::direct;
use crate::generate::Case;
use crate::list::Mutant;

/// The scripts with the mutant in them.
///
/// # Panics
/// If the text is not in the file exactly once: the list is out of date.
fn mutated(mutant: &Mutant) -> &'static Scripts {
    let (file, text, replacement) = mutant;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("lua").join(file).with_extension("lua");
    let source = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(source.matches(text).count(), 1, "{file} has this once: {text}");
    let is_library = file.starts_with("lib/");
    // Scripts begin with their libraries, so that the first place is that of the library.
    let change = |script: &tollgate::ledger::Script| {
        if is_library || script.name == *file {
            script.source.replacen(text, replacement, 1)
        } else {
            script.source.to_string()
        }
    };
    let changed = scripts().changed(change);
    let differ = changed.all().iter().zip(scripts().all()).any(|(one, two)| one.body != two.body);
    assert!(differ, "no script has this of {file}: {text}");
    // As long as the program: there are few.
    Box::leak(Box::new(changed))
}

/// After how many operations the mutant is found out, 0 by a direct check; `None` if it never is.
pub async fn kill(mutant: &Mutant, cases: &[Case], ledger: &Ledger) -> Option<usize> {
    let ledger = ledger.clone().with_scripts(mutated(mutant));
    if direct::wrong(&ledger).await.is_some() {
        return Some(0);
    }
    let mut operations = 0;
    for case in cases {
        match campaign::compare(case, &ledger).await {
            Ok((_, real)) => {
                real.clean_up().await;
                operations += case.operations.len();
            }
            Err(difference) => return Some(operations + difference.after),
        }
    }
    None
}
