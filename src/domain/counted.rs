//! A number and what it counts, for messages: "1 plan", "2 plans".

/// `number` and `noun`, a word whose plural ends in "s", in the form that fits the number.
#[must_use]
pub fn counted(number: impl TryInto<u64>, noun: &str) -> String {
    // Nothing that is counted here has more than `u64` can tell.
    let number = number.try_into().unwrap_or(u64::MAX);
    let ending = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_is_singular() {
        let told = [0_usize, 1, 2, 11, 21].map(|number| counted(number, "limit group"));
        assert_eq!(told, ["0 limit groups", "1 limit group", "2 limit groups", "11 limit groups", "21 limit groups"]);
    }
}
