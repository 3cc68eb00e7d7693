//! Catalogs as files: one for all apps, or a folder with one for each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::catalog;
use crate::domain::id::AppId;

use super::Catalogs;

/// The reason why catalogs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CatalogFailure {
    /// A file or a folder cannot be read.
    #[error("cannot read the catalog {path}")]
    Unreadable {
        /// The path of the file or the folder.
        path: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// Every problem of every file.
    #[error("the catalog {path} is not valid:\n{problems}")]
    Invalid {
        /// The file or the folder.
        path: String,
        /// A line each.
        problems: String,
    },
    /// Calls would be those of an app without plans.
    #[error(
        "the folder of catalogs has no default.yaml, and without --api-keys or --tls-client-app every call is one of the app `default`"
    )]
    NoDefaultApp,
}

/// The parsed catalogs.
#[derive(Debug)]
pub struct Parsed {
    /// The plans.
    pub catalogs: Catalogs,
    /// Warnings about parts that are valid but perhaps not intended. One line each, with the place.
    pub warnings: Vec<String>,
}

/// The texts of catalogs, as they were at one moment.
#[derive(Debug, PartialEq, Eq)]
pub struct Texts {
    path: String,
    texts: Form,
}

#[derive(Debug, PartialEq, Eq)]
enum Form {
    One(String),
    /// The texts, by the names of their files.
    Folder(BTreeMap<PathBuf, String>),
}

impl Texts {
    /// Reads a file, a folder, or the example that is built in. Of a folder it reads what ends in `.yaml` or `.yml`; names that begin with a
    /// dot are what Kubernetes and editors leave there.
    ///
    /// # Errors
    /// [`CatalogFailure::Unreadable`].
    pub fn read(path: Option<&Path>) -> Result<Self, CatalogFailure> {
        let Some(path) = path else {
            return Ok(Self { path: "built in".to_owned(), texts: Form::One(catalog::EXAMPLE.to_owned()) });
        };
        let shown = path.display().to_string();
        let unreadable = |path: &Path| {
            let path = path.display().to_string();
            move |source| CatalogFailure::Unreadable { path, source }
        };
        let read = |path: &Path| std::fs::read_to_string(path).map_err(unreadable(path));
        if !path.is_dir() {
            return Ok(Self { path: shown, texts: Form::One(read(path)?) });
        }
        let mut texts = BTreeMap::new();
        for entry in std::fs::read_dir(path).map_err(unreadable(path))? {
            let file = entry.map_err(unreadable(path))?.path();
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let is_catalog = file.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
            if is_catalog && !name.starts_with('.') {
                texts.insert(file.clone(), read(&file)?);
            }
        }
        Ok(Self { path: shown, texts: Form::Folder(texts) })
    }

    /// Tells these texts from others.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        let mut add = |text: &[u8]| {
            digest.update(text.len().to_le_bytes());
            digest.update(text);
        };
        match &self.texts {
            Form::One(text) => add(text.as_bytes()),
            Form::Folder(texts) => {
                for (file, text) in texts {
                    add(file.as_os_str().as_encoded_bytes());
                    add(text.as_bytes());
                }
            }
        }
        digest.finalize().into()
    }

    /// The catalogs that are written there, for a deployment all of whose calls may be those of the app `default`.
    ///
    /// # Errors
    /// [`CatalogFailure::Invalid`], and [`CatalogFailure::NoDefaultApp`] if that app has to have plans, and has none.
    pub fn parse_for(&self, only_default: bool) -> Result<Parsed, CatalogFailure> {
        let parsed = self.parse()?;
        let has_plans = !only_default || parsed.catalogs.have(&AppId::default());
        if has_plans { Ok(parsed) } else { Err(CatalogFailure::NoDefaultApp) }
    }

    /// The catalogs that are written there.
    ///
    /// # Errors
    /// [`CatalogFailure::Invalid`].
    pub fn parse(&self) -> Result<Parsed, CatalogFailure> {
        let invalid = |problems: String| CatalogFailure::Invalid { path: self.path.clone(), problems };
        let texts = match &self.texts {
            Form::One(text) => {
                let catalog::Checked { catalog, warnings } =
                    catalog::check(text, jiff::tz::db()).map_err(|problems| invalid(problems.to_string()))?;
                let warnings = warnings.iter().map(ToString::to_string).collect();
                return Ok(Parsed { catalogs: Catalogs::Shared(Arc::new(catalog)), warnings });
            }
            Form::Folder(texts) => texts,
        };
        let (mut problems, mut warnings) = (Vec::new(), Vec::new());
        let placed = |file: &Path, what: &dyn std::fmt::Display| {
            format!("{}: {what}", file.file_name().unwrap_or_default().display())
        };
        let mut tell = |file: &Path, problem: &dyn std::fmt::Display| problems.push(placed(file, problem));
        let mut catalogs = BTreeMap::new();
        for (file, text) in texts {
            let name = file.file_stem().unwrap_or_default().to_string_lossy();
            let app = AppId::parse(&name).map_err(|problem| tell(file, &problem));
            let checked = catalog::check(text, jiff::tz::db()).map_err(|invalid| {
                invalid.problems.iter().for_each(|problem| tell(file, problem));
            });
            if let (Ok(app), Ok(checked)) = (app, checked) {
                warnings.extend(checked.warnings.iter().map(|warning| placed(file, warning)));
                if catalogs.insert(app, Arc::new(checked.catalog)).is_some() {
                    tell(file, &"the app has two files: keep the .yaml or the .yml");
                }
            }
        }
        if texts.is_empty() {
            return Err(invalid("the folder has no NAME.yaml, whose NAME is that of an app".to_owned()));
        }
        if problems.is_empty() {
            Ok(Parsed { catalogs: Catalogs::PerApp(catalogs), warnings })
        } else {
            Err(invalid(problems.join("\n")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_a_catalog_for_each_app() {
        let folder = tempfile::tempdir().unwrap();
        let read = || Texts::read(Some(folder.path())).unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        assert!(read().parse().unwrap_err().to_string().contains("has no NAME.yaml"));
        write("chat.yaml", catalog::EXAMPLE);
        write("images.yml", catalog::EXAMPLE);
        write("README.md", "no catalog");
        write(".hidden.yaml", "no catalog");
        let Catalogs::PerApp(catalogs) = read().parse().unwrap().catalogs else { panic!("it is a folder") };
        let apps: Vec<_> = catalogs.keys().map(AppId::as_str).collect();
        assert_eq!(apps, ["chat", "images"]);

        let before = read().digest();
        write("README.md", "still none");
        assert_eq!(read().digest(), before);
        write("Chat.yaml", catalog::EXAMPLE);
        write("images.yaml", "plans: 7");
        let told = read().parse().unwrap_err().to_string();
        assert!(
            told.contains("Chat.yaml: is not the name of an app") && told.contains("images.yaml: line 1"),
            "{told}"
        );
        assert_ne!(read().digest(), before);
        write("images.yaml", catalog::EXAMPLE);
        assert!(read().parse().unwrap_err().to_string().contains("images.yml: the app has two files"));
    }

    #[test]
    fn a_file_is_for_every_app_and_one_that_is_missing_is_named() {
        let missing = Texts::read(Some(Path::new("/nonexistent/catalog.yaml"))).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/catalog.yaml"));
        let built_in = Texts::read(None).unwrap().parse().unwrap().catalogs;
        assert!(matches!(built_in, Catalogs::Shared(catalog) if !catalog.plans().is_empty()));
    }

    #[test]
    fn a_warning_names_its_file_only_where_there_are_several() {
        let priced = "plans: { p: { period: daily, limit_groups: [
            { id: t, unit: tokens, quota: 9, match: [{ event: x }] },
            { id: c, unit: cents, quota: 9, match: [{ event: x, metadata: { model: a } }] } ] } }";
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("chat.yaml");
        std::fs::write(&file, priced).unwrap();
        std::fs::write(folder.path().join("other.yaml"), catalog::EXAMPLE).unwrap();
        let warnings = |path: &Path| Texts::read(Some(path)).unwrap().parse().unwrap().warnings;
        let (of_file, of_folder) = (warnings(&file), warnings(folder.path()));
        assert!(
            of_file.len() == 1 && of_file[0].starts_with("line 3, plans.p.limit_groups[1].match[0]: "),
            "{of_file:?}"
        );
        assert_eq!(of_folder, [format!("chat.yaml: {}", of_file[0])]);
    }
}
