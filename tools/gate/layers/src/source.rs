//! What one file says of modules: which it declares, what it imports, what it defines. Code under `#[cfg(test)]` is
//! left out: tests may look at everything.

use std::collections::BTreeSet;

use proc_macro2::{Ident, TokenStream, TokenTree};
use syn::ext::IdentExt;
use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, Meta, Token, UseTree};

/// Names of a path, from its first.
pub type Names = Vec<String>;

/// What a module says.
#[derive(Debug, Default)]
pub struct Statements {
    /// Modules that it declares, each with its line and, if it is in braces, what it says.
    pub modules: Vec<(String, usize, Option<Statements>)>,
    /// What it defines itself.
    pub defines: BTreeSet<String>,
    /// What it imports: name and path. A glob has the name `*`.
    pub imports: Vec<(String, Names)>,
    /// All paths, in imports and in code, each with its line.
    pub paths: Vec<(Names, usize)>,
}

/// All that `text`, the text of a file, says.
pub fn read(text: &str) -> syn::Result<Statements> {
    let mut said = Statements::default();
    said.items(&syn::parse_file(text)?.items);
    Ok(said)
}

impl Statements {
    fn items(&mut self, items: &[Item]) {
        for item in items {
            self.defines.extend(name_of(item));
            self.visit_item(item);
        }
    }

    fn import(&mut self, line: usize, mut path: Names, tree: &UseTree) {
        let (last, name) = match tree {
            UseTree::Path(tree) => {
                path.push(text(&tree.ident));
                return self.import(line, path, &tree.tree);
            }
            UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| self.import(line, path.clone(), tree));
            }
            UseTree::Glob(_) => (None, Some("*".to_owned())),
            UseTree::Name(tree) => (Some(text(&tree.ident)), None),
            UseTree::Rename(tree) => (Some(text(&tree.ident)), Some(text(&tree.rename))),
        };
        path.extend(last.filter(|last| last != "self" || path.is_empty()));
        let name = name.or_else(|| path.last().cloned()).unwrap_or_default();
        self.imports.push((name, path.clone()));
        self.paths.push((path, line));
    }

    fn mention(&mut self, path: &[&Ident]) {
        if let [first, _, ..] = path {
            let line = first.span().start().line;
            self.paths.push((path.iter().map(|name| text(name)).collect(), line));
        }
    }
}

/// Visits nodes with attributes, unless they are for tests only.
macro_rules! unless_for_tests {
    ($($visit:ident $node:ident)*) => {
        $(fn $visit(&mut self, node: &'a syn::$node) {
            if !is_test(&node.attrs) {
                visit::$visit(self, node);
            }
        })*
    };
}

impl<'a> Visit<'a> for Statements {
    unless_for_tests! {
        visit_item_const ItemConst visit_item_enum ItemEnum visit_item_fn ItemFn visit_item_impl ItemImpl
        visit_item_macro ItemMacro visit_item_static ItemStatic visit_item_struct ItemStruct
        visit_item_trait ItemTrait visit_item_type ItemType visit_item_union ItemUnion
        visit_impl_item_const ImplItemConst visit_impl_item_fn ImplItemFn visit_trait_item_fn TraitItemFn
        visit_field Field visit_variant Variant visit_arm Arm visit_field_value FieldValue
        visit_local Local visit_expr_block ExprBlock visit_stmt_macro StmtMacro
    }

    fn visit_item_mod(&mut self, module: &'a ItemMod) {
        if !is_test(&module.attrs) {
            let inside = module.content.as_ref().map(|(_, items)| {
                let mut said = Statements::default();
                said.items(items);
                said
            });
            let line = module.mod_token.span.start().line;
            self.modules.push((text(&module.ident), line, inside));
        }
    }

    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        if !is_test(&item.attrs) {
            self.import(item.use_token.span.start().line, Names::new(), &item.tree);
        }
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        if path.leading_colon.is_none() {
            self.mention(&path.segments.iter().map(|segment| &segment.ident).collect::<Vec<_>>());
        }
        visit::visit_path(self, path);
    }

    /// What is within a macro is not parsed: paths are names with `::` between them.
    fn visit_token_stream(&mut self, tokens: &'a TokenStream) {
        let tokens: Vec<TokenTree> = tokens.clone().into_iter().collect();
        let mut path = Vec::new();
        let mut colons = 0;
        for token in &tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => {
                    colons += 1;
                    continue;
                }
                TokenTree::Ident(name) if colons == 2 => path.push(name),
                TokenTree::Ident(name) => self.mention(&std::mem::replace(&mut path, vec![name])),
                _ => self.mention(&std::mem::take(&mut path)),
            }
            if let TokenTree::Group(group) = token {
                Visit::visit_token_stream(self, &group.stream());
            }
            colons = 0;
        }
        self.mention(&path);
    }

    fn visit_attribute(&mut self, _: &'a Attribute) {}

    fn visit_visibility(&mut self, _: &'a syn::Visibility) {}
}

/// What an item defines.
fn name_of(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(text(name))
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => {
            list.parse_args().is_ok_and(|condition| needs_test(&condition))
        }
        meta => meta.path().is_ident("test"),
    })
}

/// Whether a condition of `cfg` holds in tests only.
fn needs_test(condition: &Meta) -> bool {
    let Meta::List(list) = condition else { return condition.path().is_ident("test") };
    let parts = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated);
    let Ok(parts) = parts else { return false };
    match () {
        () if list.path.is_ident("all") => parts.iter().any(needs_test),
        () if list.path.is_ident("any") => parts.iter().all(needs_test),
        () => false,
    }
}

fn text(name: &Ident) -> String {
    name.unraw().to_string()
}
