//! `docs/reference/catalog.md`: the catalogs on the page are valid.

use tollgate::catalog;

use super::page;

#[test]
fn every_catalog_of_the_page_is_valid() {
    let page = page("docs/reference/catalog.md");
    let catalogs: Vec<&str> = page.split("```yaml\n").skip(1).map(|rest| rest.split("\n```").next().unwrap()).collect();
    assert_eq!(catalogs.len(), 2);
    for text in catalogs {
        let checked = catalog::check(text, jiff::tz::db()).unwrap_or_else(|problems| panic!("{problems}\n{text}"));
        assert_eq!(checked.warnings, [], "{text}");
    }
}
