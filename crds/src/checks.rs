//! What the API server checks of one object beyond types and bounds: rules in CEL, and bounds that types from elsewhere
//! lack. Pure; each function adds to the schema of the field that names it.
//!
//! The API server tells the field, and of a text also the value, before a rule's own words; so those say what is wrong
//! and the way out. A rule on several fields names values itself. Functions of CEL are those of Kubernetes 1.30:
//! <https://kubernetes.io/docs/reference/using-api/cel/>.

use kube::core::cel::Reason;
use schemars::Schema;
use serde_json::{Value, json};

use crate::{
    keys,
    limits::{HOST_LINK_CIDR, HOST_LINK_CIDR_V6, NAME_MAX},
};

/// Gateway of all pods (Calico answers for it on every `cali*` interface).
const POD_GATEWAY: &str = "169.254.1.1";

/// A rule in CEL.
pub struct Check {
    /// Field below the one that carries the rule, as `.vni`; empty for that one itself.
    at: &'static str,
    /// Holds when all is well.
    rule: String,
    /// The rule in words, without values: for the reference.
    words: String,
    /// What the user is told, with `%s` for each of the values.
    told: String,
    /// Expressions of the values.
    values: Vec<String>,
}

impl Check {
    fn new(rule: impl Into<String>, words: impl Into<String>, told: impl Into<String>) -> Self {
        let (rule, words, told) = (rule.into(), words.into(), told.into());
        Self { at: "", rule, words, told, values: Vec::new() }
    }

    fn with<const N: usize>(self, values: [&str; N]) -> Self {
        Self { values: values.map(str::to_owned).to_vec(), ..self }
    }

    fn at(self, at: &'static str) -> Self {
        Self { at, ..self }
    }

    /// As the schema holds it.
    pub fn json(&self) -> Value {
        // By `format`, since the API server cannot bound what joining texts would cost.
        let told = match self.values.as_slice() {
            [] => format!("'{}'", self.told),
            values => format!("'{}'.format([{}])", self.told, values.join(", ")),
        };
        let mut json = json!({
            "rule": self.rule, "message": self.words, "messageExpression": told,
            "reason": Reason::FieldValueInvalid,
        });
        if !self.at.is_empty() {
            json["fieldPath"] = self.at.into();
        }
        json
    }
}

fn add(schema: &mut Schema, checks: impl IntoIterator<Item = Check>) {
    let rules = schema.ensure_object().entry("x-kubernetes-validations").or_insert_with(|| json!([]));
    if let Value::Array(rules) = rules {
        rules.extend(checks.into_iter().map(|check| check.json()));
    }
}

fn add_to_items(schema: &mut Schema, checks: impl IntoIterator<Item = Check>) {
    let items = schema.ensure_object().entry("items").or_insert_with(|| json!({}));
    let mut inner = Schema::try_from(items.take()).expect("items hold a schema");
    add(&mut inner, checks);
    *items = inner.into();
}

fn unique(schema: &mut Schema) {
    schema.insert("x-kubernetes-list-type".into(), "set".into());
}

fn unique_by(schema: &mut Schema, key: &str) {
    schema.insert("x-kubernetes-list-type".into(), "map".into());
    schema.insert("x-kubernetes-list-map-keys".into(), json!([key]));
}

/// On a whole Tenant.
pub fn tenant() -> Vec<Check> {
    let name = "self.metadata.name";
    vec![
        Check::new(
            format!("{name}.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$') && size({name}) <= {NAME_MAX}"),
            format!(
                "metadata.name: at most {NAME_MAX} lower-case letters, digits and '-', for it becomes part of a Node label"
            ),
            format!(
                "metadata.name: %s (%s characters) may have at most {NAME_MAX}, lower-case letters, digits and -, for it becomes part of a Node label; choose another name"
            ),
        )
        .with([name, "size(self.metadata.name)"]),
        Check::new(
            format!("!{name}.endsWith('-v6')"),
            "metadata.name: must not end in -v6, as the names of the BGPPeers for IPv6 do",
            "metadata.name: %s ends in -v6, as the names of the BGPPeers for IPv6 do; choose another name",
        )
        .with([name]),
        Check::new(
            format!(
                "!{name}.matches('^vni-[1-9][0-9]{{0,7}}$') || (has(self.spec.vni) && self.spec.vni == int({name}.substring(4)))"
            ),
            format!(
                "spec.vni: has to be N in a Tenant named vni-N, which stands for the pools annotated {}: N",
                keys::VNI
            ),
            format!(
                "spec.vni: %s does not fit metadata.name %s, the Tenant of the pools annotated {} with that number; write the number of the name, or choose another name",
                keys::VNI
            ),
        )
        .with(["has(self.spec.vni) ? string(self.spec.vni) : 'none'", name]),
        Check::new(
            "!has(oldSelf.status) || !has(oldSelf.status.vni) || has(oldSelf.spec.vni) || !has(self.spec.vni) || self.spec.vni == oldSelf.status.vni",
            "spec.vni: may be set later only to the VNI that was allocated (status.vni)",
            "spec.vni: %s is not the VNI that this Tenant was given and has in use, %s; write that, or make another Tenant and move the pools to it",
        )
        .with(["self.spec.vni", "oldSelf.status.vni"]),
    ]
}

/// On a Tenant's spec.
pub fn tenant_spec(schema: &mut Schema) {
    add(
        schema,
        [Check::new(
            "!has(oldSelf.vni) || (has(self.vni) && self.vni == oldSelf.vni)",
            "cannot change once it is set; make another Tenant with the new VNI and move the pools to it",
            "cannot change from %s to %s once it is set; make another Tenant with the new VNI and move the pools to it",
        )
        .with(["oldSelf.vni", "has(self.vni) ? string(self.vni) : 'none'"])
        .at(".vni")],
    );
}

/// `routeTargets.import`.
pub fn import_targets(schema: &mut Schema) {
    unique(schema);
    add_to_items(schema, [route_target()]);
}

/// `routeTargets.export`.
pub fn export_targets(schema: &mut Schema) {
    unique(schema);
    add_to_items(
        schema,
        [
            route_target(),
            Check::new(
                "!self.startsWith('*')",
                "must name its ASN: `*` matches any, so it cannot be put on a route",
                "matches any ASN and so cannot be put on a route; write ASN:NUMBER",
            ),
        ],
    );
}

/// The text forms of RFC 4360 section 4 and RFC 5668, and FRR's wildcard. As strict as FRR and the model that is sent to
/// the nodes, and without leading zeros, so that equal targets are equal texts.
fn route_target() -> Check {
    let number = "(0|[1-9][0-9]{0,9})";
    let asn = "self.split(':')[0]";
    Check::new(
        format!(
            "self.matches('^([*]|{number}|[0-9.]{{7,15}}):{number}$') \
             && int(self.split(':')[1]) <= 4294967295 \
             && ({asn} == '*' \
             || ({asn}.contains('.') ? isIP({asn}) && int(self.split(':')[1]) <= 65535 \
             : int({asn}) <= 4294967295 && (int({asn}) <= 65535 || int(self.split(':')[1]) <= 65535)))"
        ),
        "ASN:NUMBER, IPv4:NUMBER or, in import, *:NUMBER; NUMBER is at most 65535 after an IPv4 address or an ASN above 65535, else at most 4294967295",
        "is no route target: write ASN:NUMBER, IPv4:NUMBER or, in import, *:NUMBER (NUMBER is at most 65535 after an IPv4 address or an ASN above 65535, else at most 4294967295)",
    )
}

/// A list of services, each `namespace/name`.
pub fn services(schema: &mut Schema) {
    unique(schema);
    add_to_items(
        schema,
        [Check::new(
            "self.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$')",
            "NAMESPACE/NAME of a Service, such as kube-system/kube-dns",
            "is no Service: write NAMESPACE/NAME, such as kube-system/kube-dns",
        )],
    );
}

/// A list of prefixes that pods reach past their VRF.
pub fn shared_cidrs(schema: &mut Schema) {
    unique(schema);
    add_to_items(
        schema,
        prefix("10.96.0.0/16 or fd00:96::/112").into_iter().chain([Check::new(
            "!isCIDR(self) || cidr(self).prefixLength() > 0",
            "must not be everything: that would lead past the VRFs",
            "would lead everything past the VRF; name the prefixes of the services",
        )]),
    );
}

/// Of one prefix: that it is one, and its one way of writing, so that equal prefixes are equal texts.
fn prefix(example: &str) -> [Check; 2] {
    [
        Check::new(
            "isCIDR(self)",
            format!("a prefix such as {example}"),
            format!("is no prefix; write it as {example}"),
        ),
        Check::new(
            "!isCIDR(self) || self == string(cidr(self).masked())",
            "no bits beyond its length, and written the short way",
            "has bits beyond its length or is not written the short way; write %s",
        )
        .with(["string(cidr(self).masked())"]),
    ]
}

fn family(family: u8, example: &str) -> Check {
    Check::new(
        format!("!isCIDR(self) || cidr(self).ip().family() == {family}"),
        format!("IPv{family}"),
        format!("is not IPv{family}; write a prefix such as {example}"),
    )
}

fn room(longest: u8, what: &str) -> Check {
    Check::new(
        format!("!isCIDR(self) || cidr(self).prefixLength() <= {longest}"),
        format!("at least a /{longest}"),
        format!("has no room for {what}; make it at least a /{longest}"),
    )
}

/// It may get room at its end, so that every address that was handed out stays what it was.
fn grows() -> Check {
    Check::new(
        "self == oldSelf || (isCIDR(self) && isCIDR(oldSelf) && cidr(self).containsCIDR(oldSelf) && cidr(self).ip() == cidr(oldSelf).ip())",
        "may only grow and has to keep its first address: addresses are counted from there",
        "cannot change from %s to %s: the addresses in use would move; let it grow and keep its first address, or make another Underlay and move nodes to it by their labels",
    )
    .with(["oldSelf", "self"])
}

/// `vtepCIDR`.
pub fn vtep_cidr(schema: &mut Schema) {
    let example = "10.255.0.0/24";
    add(
        schema,
        prefix(example).into_iter().chain([
            family(4, example),
            room(30, "a tunnel end point"),
            Check::new(
                "!isCIDR(self) || cidr(self).ip().isGlobalUnicast()",
                "unicast addresses: no loopback, link-local or multicast",
                format!("is loopback, link-local or multicast, which no fabric routes; write a prefix such as {example}"),
            ),
            grows(),
        ]),
    );
}

/// `hostLinkCIDR`.
pub fn host_link_cidr(schema: &mut Schema) {
    let example = HOST_LINK_CIDR;
    add(
        schema,
        prefix(example).into_iter().chain([
            family(4, example),
            room(30, "a link"),
            Check::new(
                format!("!isCIDR(self) || cidr(self).ip().family() != 4 || !cidr(self).containsIP('{POD_GATEWAY}')"),
                format!("without {POD_GATEWAY}, the gateway of all of Calico's pods"),
                format!("holds {POD_GATEWAY}, the gateway of all pods of Calico; write a prefix such as {example}"),
            ),
            grows(),
        ]),
    );
}

/// `hostLinkCIDRv6`.
pub fn host_link_cidr_v6(schema: &mut Schema) {
    let example = HOST_LINK_CIDR_V6;
    add(
        schema,
        prefix(example).into_iter().chain([
            family(6, example),
            Check::new(
                "!isCIDR(self) || cidr(self).ip().isGlobalUnicast()",
                "not link-local: BIRD has no peers there",
                format!("is link-local, loopback or multicast, where BIRD has no peers; write a unique local prefix such as {example}"),
            ),
            grows(),
        ]),
    );
}

/// On an Underlay's spec: what its fields say of each other.
pub fn underlay_spec(schema: &mut Schema) {
    let both = |a: &str, b: &str| format!("!isCIDR(self.{a}) || !isCIDR(self.{b})");
    let within = |field: &str| format!("isIP(n.address) && cidr(self.{field}).containsIP(n.address)");
    let ours = |not: &str| {
        format!(
            "self.neighbors.{not}(n, (isCIDR(self.vtepCIDR) && {}) || (isCIDR(self.hostLinkCIDR) && {}) || (isCIDR(self.hostLinkCIDRv6) && {}))",
            within("vtepCIDR"),
            within("hostLinkCIDR"),
            within("hostLinkCIDRv6")
        )
    };
    add(
        schema,
        [
            Check::new(
                format!(
                    "{} || cidr(self.hostLinkCIDRv6).prefixLength() <= 96 + cidr(self.hostLinkCIDR).prefixLength()",
                    both("hostLinkCIDR", "hostLinkCIDRv6")
                ),
                "has to hold as many links as hostLinkCIDR",
                "%s holds fewer links than hostLinkCIDR %s; make it at least a /%s",
            )
            .with([
                "self.hostLinkCIDRv6",
                "self.hostLinkCIDR",
                "96 + cidr(self.hostLinkCIDR).prefixLength()",
            ])
            .at(".hostLinkCIDRv6"),
            Check::new(
                format!(
                    "{} || !(cidr(self.vtepCIDR).containsCIDR(self.hostLinkCIDR) || cidr(self.hostLinkCIDR).containsCIDR(self.vtepCIDR))",
                    both("vtepCIDR", "hostLinkCIDR")
                ),
                "must not overlap hostLinkCIDR",
                "%s overlaps hostLinkCIDR %s; give the tunnel end points a prefix of their own",
            )
            .with(["self.vtepCIDR", "self.hostLinkCIDR"])
            .at(".vtepCIDR"),
            Check::new(
                format!("!{}", ours("exists")),
                "their addresses must not lie in vtepCIDR, hostLinkCIDR or hostLinkCIDRv6, which the routers use themselves",
                "%s lies in vtepCIDR, hostLinkCIDR or hostLinkCIDRv6, whose addresses the routers use themselves; write the address of the switch, or choose another prefix",
            )
            .with([&format!("{}.map(n, n.address)", ours("filter"))])
            .at(".neighbors"),
        ],
    );
}

/// An Underlay's `asn`.
pub fn asn(schema: &mut Schema) {
    add(
        schema,
        [Check::new(
            "self == oldSelf",
            "cannot change; make another Underlay and move nodes to it by their labels",
            "cannot change from %s to %s: all sessions and route targets of its nodes would change at once; make another Underlay and move nodes to it by their labels",
        )
        .with(["oldSelf", "self"])],
    );
}

/// `neighbors`.
pub fn neighbors(schema: &mut Schema) {
    unique_by(schema, "address");
}

/// `neighbors[].address`.
pub fn neighbor_address(schema: &mut Schema) {
    add(
        schema,
        [
            Check::new(
                "isIP(self)",
                "an IP address such as 192.0.2.1 or 2001:db8::1",
                "is no IP address; write it as 192.0.2.1 or 2001:db8::1",
            ),
            Check::new(
                "!isIP(self) || self == string(ip(self))",
                "written the short way",
                "is not written the short way; write %s",
            )
            .with(["string(ip(self))"]),
            Check::new(
                "!isIP(self) || ip(self).isGlobalUnicast() || (ip(self).family() == 4 && ip(self).isLinkLocalUnicast())",
                "an address that can be peered with: unicast, not loopback, and no IPv6 link-local",
                "cannot be peered with: it is unspecified, loopback, multicast or IPv6 link-local; write the address of the switch on the link",
            ),
        ],
    );
}

/// The name of a Secret.
pub fn secret_name(schema: &mut Schema) {
    add(
        schema,
        [Check::new(
            "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",
            "a name that a Secret can have",
            "can be no name of a Secret: lower-case letters, digits, - and . alone; write the name, not the password",
        )],
    );
}

/// `interfaces`.
pub fn interfaces(schema: &mut Schema) {
    unique_by(schema, "name");
}

/// `interfaces[].name`.
pub fn interface_name(schema: &mut Schema) {
    add(
        schema,
        [
            // What the kernel's dev_valid_name refuses.
            Check::new(
                "self.matches('^[^/:[:space:]]+$') && !(self in ['.', '..'])",
                "a name that an interface can have: no '/', ':' or space",
                "is no name of an interface; see `ip link` on a node",
            ),
            Check::new(
                "self != 'lo' && !self.startsWith('cali')",
                "an interface that leads to the fabric: not lo, nor a pod's (cali*)",
                "does not lead to the fabric: it is the loopback interface or a pod of Calico; name the uplink, see `ip link` on a node",
            ),
        ],
    );
}

/// `vniRange`.
pub fn vni_range(schema: &mut Schema) {
    add(
        schema,
        [Check::new(
            "self.min <= self.max",
            "min must not be above max",
            "min %s is above max %s; write the smaller one as min",
        )
        .with(["self.min", "self.max"])
        .at(".min")],
    );
}

/// Conditions are merged by their type, and `kubectl wait` finds them by it.
pub fn conditions(schema: &mut Schema) {
    unique_by(schema, "type");
}

/// A label selector: Kubernetes' type has no bounds of its own, and takes operators and values that select nothing.
pub fn selector(schema: &mut Schema) {
    let object = schema.ensure_object();
    let key = "^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$";
    let value = "^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$";
    let Some(Value::Object(properties)) = object.get_mut("properties") else { return };
    properties["matchLabels"]["maxProperties"] = 32.into();
    properties["matchLabels"]["additionalProperties"]["maxLength"] = 63.into();
    properties["matchLabels"]["x-kubernetes-validations"] = json!([Check::new(
        format!("self.all(k, k.matches('{key}') && self[k].matches('{value}'))"),
        "keys and values as labels can have them, such as rack: a",
        "%s can be no label; write it as in metadata.labels of a Node or Namespace, such as rack: a",
    )
    .with(["self"])
    .json()]);
    let expressions = &mut properties["matchExpressions"];
    expressions["maxItems"] = 32.into();
    let item = &mut expressions["items"];
    item["properties"]["key"]["maxLength"] = 317.into();
    item["properties"]["operator"]["enum"] = json!(["In", "NotIn", "Exists", "DoesNotExist"]);
    item["properties"]["values"]["maxItems"] = 64.into();
    item["properties"]["values"]["items"]["maxLength"] = 63.into();
    item["x-kubernetes-validations"] = json!([
        Check::new(
            "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
            "In and NotIn need values; Exists and DoesNotExist take none",
            "operator %s on %s %s",
        )
        .with([
            "self.operator",
            "self.key",
            "self.operator in ['In', 'NotIn'] ? 'needs values; add some, or write Exists' : 'takes no values; remove them, or write In'",
        ])
        .json(),
        Check::new(
            format!(
                "self.key.matches('{key}') && (!has(self.values) || self.values.all(v, v.matches('{value}')))"
            ),
            "a key and values as labels can have them",
            "%s %s matches no label that there can be; write key and values as in metadata.labels of a Node or Namespace",
        )
        .with(["self.key", "has(self.values) ? self.values : []"])
        .json(),
    ]);
}
