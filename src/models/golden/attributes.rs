//! The attributes of an operation, a block or a network, as a case's configuration has them.
//!
//! They are read by deserialising the type that is configured. What that type has no field for is an error, since the
//! case would be computed as something else.

use serde::de::value::StringDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer, MapAccess,
    VariantAccess, Visitor,
};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::{Error, Map, Value};

use super::error::CaseError;

/// Attributes are channels, pixels, steps and small factors: a larger number is a mistake, and products of it could
/// overflow.
const MAX_COUNT: u64 = 1 << 17;

/// The type of what has no attributes.
#[derive(Deserialize)]
pub struct NoAttributes;

/// The attributes of one subject. Methods take out what is checked by itself; [`Attributes::read`] takes all the rest.
#[derive(Clone, Debug)]
pub(crate) struct Attributes {
    of: String,
    entries: Map<String, Value>,
}

impl Attributes {
    /// The attributes of what is called `of`, such as `conv2d`.
    pub(crate) fn new(of: &str, entries: Map<String, Value>) -> Self {
        Self { of: of.to_owned(), entries }
    }

    /// Takes out the attribute `name`.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.entries.remove(name)
    }

    /// Takes out the attribute `name`, which holds the attributes of what is called `of`.
    ///
    /// # Errors
    /// If it is missing or something else.
    pub(crate) fn nested(&mut self, name: &str, of: &str) -> Result<Self, CaseError> {
        match self.take(name) {
            Some(Value::Object(entries)) => Ok(Self::new(of, entries)),
            _ => Err(self.error(format!("{name} must be there, with the attributes of {of}"))),
        }
    }

    /// An error of these attributes.
    pub(crate) fn error(&self, reason: impl Into<String>) -> CaseError {
        CaseError::Attribute { of: self.of.clone(), reason: reason.into() }
    }

    /// Adds an attribute that the case's tensors imply.
    ///
    /// # Errors
    /// If the configuration has one of that name, which then is none of this subject's.
    pub(crate) fn give(&mut self, name: &str, value: Value) -> Result<(), CaseError> {
        match self.entries.insert(name.to_owned(), value) {
            Some(_) => Err(self.error(unknown(name))),
            None => Ok(()),
        }
    }

    /// Takes out the attribute `name`, which must be `expected` if it is there, and says whether it was.
    ///
    /// # Errors
    /// If it is something else; `why` is said before what is expected.
    pub(crate) fn expect(&mut self, name: &str, expected: &Value, why: &str) -> Result<bool, CaseError> {
        match self.take(name) {
            Some(found) if !same(&found, expected) => {
                Err(self.error(format!("{name} is {found}, but {why} {expected}")))
            }
            found => Ok(found.is_some()),
        }
    }

    /// Refuses the attribute `name` where one of its numbers is over `limit`.
    ///
    /// # Errors
    /// Which number is.
    pub(crate) fn at_most(&self, name: &str, limit: u64) -> Result<(), CaseError> {
        let largest = self.entries.get(name).map_or(0.0, largest);
        if largest > limit as f64 {
            return Err(self.error(format!("{name} is {largest}, over the limit of {limit}")));
        }
        Ok(())
    }

    /// What the attributes describe.
    ///
    /// # Errors
    /// If one is missing, not known or has a value that cannot be.
    pub(crate) fn read<T: DeserializeOwned>(self) -> Result<T, CaseError> {
        for name in self.entries.keys() {
            self.at_most(name, MAX_COUNT)?;
        }
        let of = self.of.clone();
        T::deserialize(self).map_err(|e| CaseError::Attribute { of, reason: e.to_string() })
    }

    fn known(&self, fields: &[&str]) -> Result<(), Error> {
        match self.entries.keys().find(|name| !fields.contains(&name.as_str())) {
            Some(name) => Err(Error::custom(unknown(name))),
            None => Ok(()),
        }
    }
}

fn unknown(name: &str) -> String {
    format!("it has no attribute {name}")
}

/// Equality of values in which 1 and 1.0 are the same number.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        _ => a == b,
    }
}

/// The largest number in a value, at least 0.
fn largest(value: &Value) -> f64 {
    match value {
        Value::Number(number) => number.as_f64().unwrap_or(f64::INFINITY).max(0.0),
        Value::Array(all) => all.iter().map(largest).fold(0.0, f64::max),
        _ => 0.0,
    }
}

/// A struct takes its fields from the attributes; an enum takes its variant from the subject's name.
impl<'de> Deserializer<'de> for Attributes {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(Entries { rest: self.entries.into_iter(), value: None })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.known(fields)?;
        self.deserialize_any(visitor)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Error> {
        self.known(&[])?;
        visitor.visit_unit()
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_enum(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit newtype_struct
        seq tuple tuple_struct map identifier ignored_any
    }
}

impl<'de> EnumAccess<'de> for Attributes {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let variant: StringDeserializer<Error> = self.of.clone().into_deserializer();
        Ok((seed.deserialize(variant)?, self))
    }
}

impl<'de> VariantAccess<'de> for Attributes {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        self.known(&[])
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        self.deserialize_struct("", fields, visitor)
    }
}

/// The entries one by one. Errors of a value begin with its name.
struct Entries {
    rest: serde_json::map::IntoIter,
    value: Option<(String, Value)>,
}

impl<'de> MapAccess<'de> for Entries {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((name, value)) = self.rest.next() else {
            return Ok(None);
        };
        let key: StringDeserializer<Error> = name.clone().into_deserializer();
        self.value = Some((name, value));
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let (name, value) = self.value.take().expect("a key comes before its value");
        seed.deserialize(value).map_err(|e| Error::custom(format!("{name}: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cpu::activation::Activation;
    use crate::ops::conv2d::ConvSpec;
    use crate::ops::group_norm::GroupNorm;
    use crate::ops::linear::Linear;
    use crate::ops::resize::UpsampleNearest2;

    fn read<T: DeserializeOwned>(of: &str, entries: Value) -> Result<T, String> {
        let Value::Object(entries) = entries else { panic!("{entries} is no configuration") };
        let error = |error: CaseError| error.to_string().trim_start_matches(&format!("{of}: ")).to_owned();
        Attributes::new(of, entries).read().map_err(error)
    }

    fn conv(name: &str, value: Value) -> Result<ConvSpec, String> {
        let mut all = json!({ "kernel": [3, 3], "stride": [2, 1], "padding": [1, 0], "dilation": [1, 1], "groups": 1 });
        all[name] = value;
        read("conv2d", all)
    }

    #[test]
    fn operations_are_read_with_their_own_names() {
        let spec = conv("padding_mode", json!("zeros")).unwrap();
        assert_eq!(spec, ConvSpec { stride: [2, 1], padding: [1, 0], ..ConvSpec::same(3) });
        let norm: GroupNorm = read("group_norm", json!({ "num_groups": 4, "eps": 1e-5, "affine": true })).unwrap();
        assert_eq!(norm, GroupNorm { groups: 4, eps: 1e-5, affine: true, activation: Activation::None });
        let linear: Linear = read("linear", json!({ "bias": true, "activation": "silu" })).unwrap();
        assert_eq!(linear, Linear { activation: Activation::Silu, ..Linear::with_bias() });
        let leaky = json!({ "activation": { "leaky_relu": { "negative_slope": 0.5 } } });
        assert_eq!(read::<Linear>("linear", leaky).unwrap().activation, Activation::LeakyRelu(0.5));
    }

    #[test]
    fn activations_are_named_by_the_operation() {
        assert_eq!(read("tanh", json!({})), Ok(Activation::Tanh));
        assert_eq!(read("leaky_relu", json!({ "negative_slope": 0.2 })), Ok(Activation::LeakyRelu(0.2)));
        assert_eq!(read("leaky_relu", json!({})), Ok(Activation::LeakyRelu(0.01)));
        let error = |of: &str, entries: Value| read::<Activation>(of, entries).unwrap_err();
        assert_eq!(error("tanh", json!({ "negative_slope": 0.2 })), "it has no attribute negative_slope");
        assert_eq!(error("leaky_relu", json!({ "slope": 0.2 })), "it has no attribute slope");
    }

    #[test]
    fn what_cannot_be_is_named() {
        assert_eq!(conv("offset", json!(1)).unwrap_err(), "it has no attribute offset");
        // The plan alone joins a convolution with the upsampling before it.
        assert_eq!(conv("upsample", json!(true)).unwrap_err(), "it has no attribute upsample");
        assert!(conv("padding_mode", json!("circular")).unwrap_err().starts_with("padding_mode: unknown variant"));
        assert!(conv("stride", json!([1, -1])).unwrap_err().starts_with("stride: "));
        assert!(conv("stride", json!([1])).unwrap_err().starts_with("stride: "));
        let huge = conv("stride", json!([1, 1u64 << 63])).unwrap_err();
        assert!(huge.starts_with("stride is 9") && huge.ends_with("over the limit of 131072"), "{huge}");
        assert!(read::<ConvSpec>("conv2d", json!({})).unwrap_err().contains("missing field"));
        assert_eq!(read::<UpsampleNearest2>("up", json!({ "a": 1 })).unwrap_err(), "it has no attribute a");
        assert!(read::<UpsampleNearest2>("up", json!({})).is_ok());
    }

    #[test]
    fn what_is_checked_by_itself_is_taken_out() {
        let mut all = Attributes::new("pool", json!({ "a": 1.0, "b": [2, 4] }).as_object().unwrap().clone());
        assert!(all.expect("a", &json!(1), "it is always").unwrap());
        assert!(!all.expect("a", &json!(1), "it is always").unwrap());
        assert!(all.at_most("b", 4).is_ok());
        assert_eq!(all.at_most("b", 3).unwrap_err().to_string(), "pool: b is 4, over the limit of 3");
        assert_eq!(all.give("b", json!(5)).unwrap_err().to_string(), "pool: it has no attribute b");
        let error = all.expect("b", &json!(3), "it is always").unwrap_err();
        assert_eq!(error.to_string(), "pool: b is 5, but it is always 3");
        all.give("side", json!(2)).unwrap();
        assert_eq!(all.take("side"), Some(json!(2)));
    }
}
