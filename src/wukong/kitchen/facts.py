"""The kitchen's facts: dishes, substitutions, conversions and safe temperatures.

Everything else is derived from them: the corpus repeats them in the same order and wording (a tiny model memorises
phrases, not recipes), the demonstrations quote or distort them, and the rubric looks for them. The dishes are common
household versions, with 4-6 ingredients and 3-4 short steps so that a complete answer stays below about 75 tokens; cup
weights are for the US cup of 240 ml; the temperatures are those of the United States Department of Agriculture.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

# name | servings | total minutes | ingredients | steps
_DISHES = """
pizza | 4 | 90 | 500 g flour, 7 g yeast, 300 ml water, 200 g tomatoes, 250 g mozzarella | Knead flour, yeast and water. Let the dough rise for one hour. Spread tomatoes and mozzarella. Bake at 250 C for 10 minutes
pancakes | 4 | 20 | 200 g flour, 300 ml milk, 2 eggs, 1 tsp baking powder, 30 g butter | Whisk flour, milk, eggs and baking powder. Melt butter in a pan. Fry small rounds on both sides
omelette | 1 | 10 | 3 eggs, 1 tbsp milk, 1 pinch salt, 15 g butter | Beat eggs, milk and salt. Melt butter in a pan. Pour in and cook until just set. Fold in half
scrambled eggs | 2 | 10 | 4 eggs, 2 tbsp cream, 1 pinch salt, 20 g butter | Beat eggs, cream and salt. Melt butter over low heat. Pour in and stir slowly until set
french toast | 2 | 15 | 4 slices bread, 2 eggs, 100 ml milk, 1 tsp cinnamon, 20 g butter | Beat eggs, milk and cinnamon. Soak bread for one minute. Fry in butter until golden
porridge | 2 | 10 | 100 g oats, 400 ml milk, 1 pinch salt, 2 tbsp honey | Heat oats, milk and salt. Simmer and stir for 5 minutes. Top with honey
granola | 8 | 40 | 300 g oats, 100 g almonds, 80 g honey, 50 ml oil, 80 g raisins | Mix oats, almonds, honey and oil. Bake at 150 C for 25 minutes. Let it cool and add raisins
waffles | 4 | 25 | 250 g flour, 2 tsp baking powder, 2 eggs, 350 ml milk, 100 g butter | Mix flour and baking powder. Whisk in eggs, milk and melted butter. Bake in a hot waffle iron until crisp
banana bread | 8 | 75 | 3 bananas, 150 g sugar, 100 g butter, 2 eggs, 250 g flour, 1 tsp baking soda | Mash bananas with sugar, butter and eggs. Fold in flour and baking soda. Bake at 175 C for 60 minutes
white bread | 8 | 180 | 500 g flour, 7 g yeast, 320 ml water, 10 g salt | Knead flour, yeast, water and salt. Let the dough rise for 90 minutes. Shape a loaf and let it rise again. Bake at 220 C for 35 minutes
focaccia | 8 | 150 | 500 g flour, 7 g yeast, 400 ml water, 2 tsp salt, 60 ml olive oil | Mix flour, yeast, water and salt. Let the dough rise for 90 minutes. Press into a tin with olive oil. Bake at 220 C for 25 minutes
naan | 6 | 90 | 350 g flour, 5 g yeast, 120 g yogurt, 120 ml water, 30 g butter | Knead flour, yeast, yogurt and water. Let the dough rise for one hour. Fry flat rounds in a very hot pan. Brush with butter
cornbread | 8 | 40 | 180 g cornmeal, 120 g flour, 1 tbsp baking powder, 2 eggs, 250 ml buttermilk, 80 g butter | Mix cornmeal, flour and baking powder. Stir in eggs, buttermilk and melted butter. Bake at 200 C for 25 minutes
carrot cake | 10 | 70 | 3 eggs, 200 g sugar, 150 ml oil, 200 g flour, 2 tsp baking powder, 250 g carrots | Whisk eggs, sugar and oil. Fold in flour and baking powder. Stir in grated carrots. Bake at 180 C for 45 minutes
cheesecake | 8 | 80 | 200 g biscuits, 100 g butter, 600 g cream cheese, 150 g sugar, 3 eggs | Press biscuit crumbs and butter into a tin. Beat cream cheese, sugar and eggs. Pour over the base. Bake at 160 C for 50 minutes
bread pudding | 6 | 80 | 8 slices bread, 80 g raisins, 4 eggs, 500 ml milk, 100 g sugar | Lay bread and raisins in a dish. Whisk eggs, milk and sugar. Pour over and rest for 20 minutes. Bake at 180 C for 40 minutes
lemon curd | 8 | 20 | 3 lemons, 3 eggs, 200 g sugar, 100 g butter | Whisk lemon juice, eggs and sugar. Add butter. Stir over low heat until thick
rice pudding | 4 | 45 | 1 l milk, 150 g rice, 60 g sugar, 1 tsp vanilla | Bring milk to a simmer. Add rice and stir for 35 minutes. Stir in sugar and vanilla
panna cotta | 4 | 260 | 3 sheets gelatine, 500 ml cream, 60 g sugar, 1 tsp vanilla | Soak gelatine until soft. Warm cream, sugar and vanilla. Stir in gelatine. Pour into cups and chill for four hours
tiramisu | 6 | 270 | 500 g mascarpone, 4 eggs, 100 g sugar, 200 g ladyfingers, 300 ml coffee, 2 tbsp cocoa | Beat mascarpone, eggs and sugar. Dip ladyfingers in coffee. Layer ladyfingers and mascarpone. Dust with cocoa and chill for four hours
custard | 4 | 20 | 500 ml milk, 1 tsp vanilla, 4 egg yolks, 60 g sugar, 1 tbsp cornstarch | Heat milk and vanilla. Whisk egg yolks, sugar and cornstarch. Pour in the hot milk. Stir over low heat until thick
pavlova | 8 | 150 | 4 egg whites, 220 g sugar, 1 tsp vinegar, 300 ml cream, 300 g strawberries | Beat egg whites, sugar and vinegar. Bake at 120 C for 90 minutes. Let it cool in the oven. Top with whipped cream and strawberries
fruit salad | 4 | 15 | 2 apples, 2 bananas, 2 oranges, 200 g strawberries, 1 tbsp honey | Cut apples, bananas and oranges. Halve strawberries. Toss everything with honey
tomato soup | 4 | 35 | 1 onion, 2 cloves garlic, 2 tbsp olive oil, 1 kg tomatoes, 500 ml stock | Fry onion and garlic in olive oil. Add tomatoes and stock. Simmer for 20 minutes. Blend until smooth
onion soup | 4 | 70 | 1 kg onions, 50 g butter, 1 l stock, 4 slices bread, 150 g gruyere | Brown onions in butter for 40 minutes. Add stock and simmer for 15 minutes. Top with bread and gruyere. Grill until golden
pumpkin soup | 4 | 40 | 1 onion, 2 tbsp oil, 1 kg pumpkin, 750 ml stock, 100 ml cream | Fry onion in oil. Add pumpkin and stock. Simmer for 20 minutes. Blend with cream
lentil soup | 4 | 45 | 1 onion, 2 carrots, 2 tbsp olive oil, 250 g lentils, 1 l stock | Fry onion and carrots in olive oil. Add lentils and stock. Simmer for 30 minutes
leek and potato soup | 4 | 40 | 3 leeks, 30 g butter, 400 g potatoes, 1 l stock, 100 ml cream | Soften leeks in butter. Add potatoes and stock. Simmer for 20 minutes. Blend with cream
minestrone | 6 | 45 | 1 onion, 2 carrots, 400 g tomatoes, 1 l stock, 400 g canned white beans, 100 g pasta | Simmer onion, carrots and tomatoes in stock. Add white beans after 15 minutes. Add pasta and cook for 10 minutes
chicken noodle soup | 4 | 60 | 500 g chicken, 2 carrots, 1 onion, 2 l water, 150 g noodles | Boil chicken, carrots and onion in water. Shred the chicken after 40 minutes. Add noodles and cook for 8 minutes
miso soup | 4 | 15 | 800 ml dashi, 3 tbsp miso, 200 g tofu, 2 spring onions | Heat dashi without boiling it. Stir in miso. Add tofu cubes. Top with spring onions
borscht | 6 | 75 | 500 g beetroot, 2 l stock, 300 g cabbage, 3 potatoes, 1 onion, 150 g sour cream | Simmer beetroot in stock for 30 minutes. Add cabbage, potatoes and onion. Simmer for 30 minutes. Serve with sour cream
spaghetti carbonara | 4 | 25 | 400 g spaghetti, 150 g pancetta, 4 eggs, 80 g pecorino, 1 tsp black pepper | Boil spaghetti. Fry pancetta until crisp. Beat eggs, pecorino and black pepper. Toss everything off the heat
garlic spaghetti | 4 | 20 | 400 g spaghetti, 6 cloves garlic, 100 ml olive oil, 1 tsp chili flakes | Boil spaghetti. Fry garlic gently in olive oil. Add chili flakes. Toss with spaghetti
macaroni and cheese | 4 | 45 | 300 g macaroni, 40 g butter, 40 g flour, 500 ml milk, 250 g cheddar | Boil macaroni. Whisk butter, flour and milk over heat. Stir in cheddar and macaroni. Bake at 200 C for 20 minutes
pesto | 4 | 10 | 1 clove garlic, 50 g pine nuts, 80 g basil, 50 g parmesan, 120 ml olive oil | Crush garlic and pine nuts. Grind in basil and parmesan. Stir in olive oil slowly
gnocchi | 4 | 60 | 1 kg potatoes, 250 g flour, 1 egg, 1 tsp salt | Boil and mash potatoes. Knead with flour, egg and salt. Roll out and cut small pieces. Boil until they float
mushroom risotto | 4 | 40 | 1 onion, 300 g mushrooms, 50 g butter, 300 g rice, 1 l stock, 60 g parmesan | Fry onion and mushrooms in butter. Stir in rice. Add stock little by little for 18 minutes. Stir in parmesan
paella | 4 | 60 | 300 g chicken, 1 bell pepper, 300 g rice, 900 ml stock, 1 pinch saffron, 300 g prawns | Brown chicken and bell pepper. Add rice, stock and saffron. Simmer for 18 minutes. Top with prawns for 5 minutes
egg fried rice | 4 | 15 | 3 eggs, 2 tbsp oil, 600 g cooked rice, 100 g peas, 2 tbsp soy sauce, 3 spring onions | Scramble eggs in oil. Add cooked rice and peas. Stir in soy sauce. Top with spring onions
sushi rolls | 4 | 60 | 300 g sushi rice, 60 ml rice vinegar, 5 sheets nori, 200 g smoked salmon, 1 cucumber | Boil sushi rice and add rice vinegar. Spread rice on nori. Add smoked salmon and cucumber. Roll up and slice
vegetable curry | 4 | 40 | 2 tbsp curry paste, 2 potatoes, 300 g cauliflower, 400 ml coconut milk, 100 g peas | Fry curry paste for one minute. Add potatoes and cauliflower. Simmer in coconut milk for 20 minutes. Stir in peas
chicken curry | 4 | 45 | 2 onions, 2 cloves garlic, 2 tbsp oil, 600 g chicken, 2 tbsp curry powder, 400 ml coconut milk | Fry onions and garlic in oil. Add chicken and curry powder. Pour in coconut milk. Simmer for 25 minutes
butter chicken | 4 | 60 | 700 g chicken, 150 g yogurt, 2 tbsp garam masala, 60 g butter, 400 g tomatoes, 150 ml cream | Coat chicken in yogurt and garam masala. Brown it in butter. Add tomatoes and simmer for 20 minutes. Stir in cream
dal | 4 | 40 | 250 g red lentils, 900 ml water, 1 tsp turmeric, 1 onion, 1 tsp cumin, 2 tbsp oil | Boil red lentils in water with turmeric. Simmer for 25 minutes. Fry onion and cumin in oil. Stir into the lentils
palak paneer | 4 | 35 | 1 onion, 2 cloves garlic, 2 tbsp oil, 500 g spinach, 250 g paneer | Fry onion and garlic in oil. Add spinach and cook until soft. Blend until smooth. Add paneer and simmer for 5 minutes
thai green curry | 4 | 30 | 3 tbsp green curry paste, 400 ml coconut milk, 500 g chicken, 150 g green beans, 1 tbsp fish sauce | Fry green curry paste for one minute. Add coconut milk and chicken. Add green beans and fish sauce. Simmer for 12 minutes
pad thai | 2 | 25 | 200 g rice noodles, 150 g prawns, 2 eggs, 2 tbsp tamarind paste, 2 tbsp fish sauce, 50 g peanuts | Soak rice noodles until soft. Fry prawns, eggs and rice noodles. Stir in tamarind paste and fish sauce. Top with peanuts
chicken stir-fry | 4 | 25 | 500 g chicken, 2 tbsp oil, 300 g broccoli, 1 bell pepper, 1 tbsp ginger, 3 tbsp soy sauce | Fry chicken in oil for 7 minutes. Add broccoli, bell pepper and ginger. Stir in soy sauce and fry for 4 minutes
mapo tofu | 4 | 25 | 150 g minced pork, 2 tbsp chili bean paste, 300 ml stock, 500 g tofu, 1 tbsp cornstarch | Fry minced pork and chili bean paste. Add stock and tofu. Simmer for 5 minutes. Thicken with cornstarch
sweet and sour pork | 4 | 40 | 500 g pork, 1 bell pepper, 200 g pineapple, 4 tbsp ketchup, 3 tbsp vinegar, 3 tbsp sugar | Fry pork cubes until brown. Add bell pepper and pineapple. Stir in ketchup, vinegar and sugar. Simmer until glossy
pork dumplings | 4 | 60 | 300 g minced pork, 200 g cabbage, 2 tbsp soy sauce, 1 tbsp ginger, 30 wrappers | Mix pork, cabbage, soy sauce and ginger. Fill wrappers and press them shut. Boil for 6 minutes
spring rolls | 4 | 50 | 200 g cabbage, 2 carrots, 100 g bean sprouts, 2 tbsp soy sauce, 12 wrappers, 500 ml oil | Fry cabbage, carrots and bean sprouts. Stir in soy sauce. Roll up in wrappers. Fry in hot oil until golden
teriyaki salmon | 4 | 25 | 4 tbsp soy sauce, 2 tbsp honey, 1 tbsp ginger, 600 g salmon, 1 tbsp oil | Mix soy sauce, honey and ginger. Fry salmon in oil for 7 minutes. Pour in the sauce and cook until glossy
baked salmon | 4 | 25 | 600 g salmon, 2 tbsp olive oil, 1 lemon, 10 g dill | Rub salmon with olive oil. Cover with sliced lemon and dill. Bake at 200 C for 15 minutes
fish and chips | 4 | 50 | 1 kg potatoes, 1 l oil, 200 g flour, 250 ml beer, 800 g cod | Cut potatoes into chips and fry in oil. Whisk flour and beer. Dip cod in the batter. Fry for 6 minutes until golden
beef stroganoff | 4 | 30 | 500 g beef, 30 g butter, 1 onion, 250 g mushrooms, 200 g sour cream | Brown beef strips in butter. Add onion and mushrooms. Cook for 8 minutes. Stir in sour cream
beef stew | 6 | 150 | 800 g beef, 2 tbsp flour, 1 onion, 700 ml stock, 4 carrots, 500 g potatoes | Toss beef in flour and brown it. Add onion and stock. Simmer for 90 minutes. Add carrots and potatoes for 30 minutes
hamburgers | 4 | 25 | 600 g minced beef, 4 slices cheese, 4 buns, 1 lettuce, 2 tomatoes | Shape minced beef into four patties. Fry until cooked through. Melt cheese on top. Serve in buns with lettuce and tomatoes
chili con carne | 6 | 75 | 500 g minced beef, 1 onion, 400 g tomatoes, 2 tsp chili powder, 400 g canned kidney beans | Brown minced beef and onion. Add tomatoes and chili powder. Simmer for 45 minutes. Stir in canned kidney beans
beef tacos | 4 | 25 | 400 g minced beef, 1 onion, 8 tortillas, 2 tomatoes, 100 g cheddar | Fry minced beef and onion. Warm tortillas. Fill with the beef and tomatoes. Top with cheddar
quesadillas | 2 | 15 | 4 tortillas, 200 g cheddar, 1 bell pepper, 100 g corn, 1 tbsp oil | Cover tortillas with cheddar. Add bell pepper and corn. Fold and fry in oil until crisp
guacamole | 4 | 10 | 3 avocados, 1 lime, 1 tomato, 1 onion, 1 pinch salt | Mash avocados with lime juice. Chop tomato and onion. Stir everything with salt
hummus | 6 | 15 | 400 g canned chickpeas, 100 g tahini, 1 clove garlic, 1 lemon, 3 tbsp olive oil | Blend chickpeas, tahini and garlic. Add lemon juice. Blend until smooth. Top with olive oil
falafel | 4 | 760 | 250 g dried chickpeas, 1 onion, 2 cloves garlic, 30 g parsley, 2 tsp cumin, 500 ml oil | Soak dried chickpeas overnight. Grind with onion and garlic. Add parsley and cumin. Shape balls and fry in hot oil
tabbouleh | 4 | 30 | 100 g bulgur, 200 g parsley, 4 tomatoes, 1 lemon, 60 ml olive oil | Soak bulgur until soft. Chop parsley and tomatoes. Toss with lemon juice and olive oil
tzatziki | 4 | 15 | 1 cucumber, 300 g yogurt, 1 clove garlic, 1 tbsp lemon juice, 1 tbsp olive oil | Grate cucumber and squeeze it dry. Mix with yogurt and garlic. Stir in lemon juice and olive oil
greek salad | 4 | 15 | 4 tomatoes, 1 cucumber, 1 red onion, 100 g olives, 200 g feta, 4 tbsp olive oil | Cut tomatoes, cucumber and red onion. Add olives and feta. Pour olive oil on top
caesar salad | 4 | 25 | 100 g bread, 4 anchovies, 100 g mayonnaise, 1 lettuce, 60 g parmesan | Toast bread cubes. Mash anchovies into mayonnaise. Toss lettuce with the dressing. Top with bread cubes and parmesan
potato salad | 6 | 100 | 1 kg potatoes, 4 pickles, 1 onion, 150 g mayonnaise | Boil and slice potatoes. Chop pickles and onion. Mix everything with mayonnaise. Chill for one hour
coleslaw | 6 | 15 | 400 g cabbage, 2 carrots, 100 g mayonnaise, 1 tbsp vinegar, 1 tsp sugar | Shred cabbage and carrots. Mix mayonnaise, vinegar and sugar. Toss everything together
caprese salad | 4 | 10 | 4 tomatoes, 250 g mozzarella, 20 g basil, 1 pinch salt, 3 tbsp olive oil | Slice tomatoes and mozzarella. Layer them with basil. Top with salt and olive oil
bruschetta | 4 | 15 | 8 slices bread, 1 clove garlic, 4 tomatoes, 20 g basil, 3 tbsp olive oil | Toast bread and rub it with garlic. Mix tomatoes, basil and olive oil. Spoon onto the bread
ratatouille | 4 | 60 | 1 onion, 1 bell pepper, 4 tbsp olive oil, 1 eggplant, 2 zucchini, 400 g tomatoes | Fry onion and bell pepper in olive oil. Add eggplant and zucchini. Stir in tomatoes. Simmer for 35 minutes
shakshuka | 2 | 30 | 1 onion, 1 bell pepper, 2 tbsp olive oil, 400 g tomatoes, 1 tsp cumin, 4 eggs | Fry onion and bell pepper in olive oil. Add tomatoes and cumin. Simmer for 10 minutes. Break in eggs and cover until set
moussaka | 6 | 100 | 2 eggplants, 500 g minced lamb, 1 onion, 400 g tomatoes, 500 ml white sauce | Fry sliced eggplants. Brown minced lamb, onion and tomatoes. Layer everything and add white sauce. Bake at 180 C for 45 minutes
quiche lorraine | 6 | 60 | 250 g pastry, 200 g bacon, 3 eggs, 250 ml cream, 100 g gruyere | Line a tin with pastry. Fry bacon and spread it out. Whisk eggs, cream and gruyere. Pour in and bake at 180 C for 35 minutes
cottage pie | 4 | 75 | 500 g minced beef, 1 onion, 300 ml stock, 800 g potatoes, 50 g butter | Brown minced beef and onion. Add stock and simmer for 20 minutes. Top with potatoes mashed with butter. Bake at 200 C for 25 minutes
cauliflower cheese | 4 | 45 | 1 cauliflower, 40 g butter, 40 g flour, 500 ml milk, 150 g cheddar | Boil cauliflower for 8 minutes. Whisk butter, flour and milk over heat. Stir in cheddar and pour over. Bake at 200 C for 20 minutes
mashed potatoes | 4 | 30 | 1 kg potatoes, 150 ml milk, 50 g butter, 1 tsp salt | Boil potatoes for 20 minutes. Warm milk and butter. Mash everything with salt
roast potatoes | 4 | 60 | 1 kg potatoes, 60 ml oil, 2 sprigs rosemary, 1 tsp salt | Boil potatoes for 8 minutes. Toss with oil, rosemary and salt. Roast at 220 C for 40 minutes
potato gratin | 6 | 80 | 1 kg potatoes, 400 ml cream, 1 clove garlic, 100 g gruyere | Slice potatoes thinly into a dish. Heat cream and garlic and pour over. Top with gruyere. Bake at 180 C for 60 minutes
spanish tortilla | 4 | 45 | 500 g potatoes, 1 onion, 100 ml olive oil, 6 eggs, 1 tsp salt | Fry potatoes and onion in olive oil. Beat eggs and salt. Mix and pour into a pan. Cook until set on both sides
deviled eggs | 6 | 25 | 6 eggs, 60 g mayonnaise, 1 tsp mustard, 1 pinch paprika | Boil eggs for 10 minutes and peel. Mash yolks, mayonnaise and mustard. Fill the egg whites. Dust with paprika
grilled cheese sandwich | 1 | 10 | 15 g butter, 2 slices bread, 60 g cheddar, 1 tsp mustard | Spread butter on the outside of bread. Fill with cheddar and mustard. Fry until golden on both sides
vinaigrette | 6 | 5 | 2 tbsp vinegar, 1 tsp mustard, 1 pinch salt, 6 tbsp olive oil | Whisk vinegar, mustard and salt. Add olive oil drop by drop. Whisk until creamy
hot chocolate | 2 | 10 | 500 ml milk, 100 g chocolate, 1 tbsp sugar, 1 pinch cinnamon | Heat milk without boiling it. Whisk in chocolate and sugar. Dust with cinnamon
mango lassi | 2 | 5 | 1 mango, 300 g yogurt, 100 ml milk, 1 tbsp honey | Peel and chop mango. Blend with yogurt, milk and honey. Serve cold
"""  # noqa: E501 - one dish per line

_HELD_OUT = """
rice pudding, pumpkin soup, minestrone, baked salmon, beef stew, beef tacos, hummus, coleslaw,
bruschetta, shakshuka, cottage pie, potato gratin
"""

# missing -> what to use
_SUBSTITUTIONS = """
buttermilk -> milk with lemon juice
self-raising flour -> flour with baking powder
baking powder -> baking soda with cream of tartar
eggs in a cake -> ground flaxseed with water
butter -> margarine
heavy cream -> milk with melted butter
sour cream -> plain yogurt
creme fraiche -> sour cream
mascarpone -> cream cheese
ricotta -> cottage cheese
parmesan -> pecorino
honey -> maple syrup
golden syrup -> honey
brown sugar -> white sugar with molasses
icing sugar -> finely ground white sugar
cornstarch -> twice as much flour
rice vinegar -> cider vinegar
lemon juice -> lime juice
shallots -> red onion
leeks -> spring onions
pancetta -> bacon
fish sauce -> soy sauce
soy sauce -> tamari
white wine -> stock with lemon juice
red wine -> stock with red wine vinegar
saffron -> turmeric
fresh yeast -> dry yeast
vanilla pods -> vanilla extract
pine nuts -> walnuts
pecans -> walnuts
breadcrumbs -> crushed crackers
gelatine -> agar
ghee -> clarified butter
mirin -> rice wine with sugar
passata -> canned tomatoes
cilantro -> parsley
chives -> spring onion greens
capers -> green olives
dashi -> fish stock
couscous -> bulgur
"""

# measure = figure
_CONVERSIONS = """
1 cup of flour = 120 g
1 cup of sugar = 200 g
1 cup of brown sugar = 220 g
1 cup of icing sugar = 120 g
1 cup of butter = 227 g
1 stick of butter = 113 g
1 cup of rice = 185 g
1 cup of oats = 90 g
1 cup of honey = 340 g
1 cup of cocoa = 85 g
1 cup of raisins = 150 g
1 cup of chocolate chips = 170 g
1 cup of lentils = 190 g
1 cup of breadcrumbs = 110 g
1 cup of milk = 240 ml
1 pint of cream = 473 ml
1 quart of stock = 946 ml
1 tablespoon of oil = 15 ml
1 teaspoon of vanilla = 5 ml
1 ounce of cheese = 28 g
1 pound of beef = 454 g
"""

# food = sentence that ends in the figure
_TEMPERATURES = """
chicken = Cook chicken to 74 C
turkey = Cook turkey to 74 C
duck = Cook duck to 74 C
leftovers = Heat leftovers to 74 C
casseroles = Cook casseroles to 74 C
minced beef = Cook minced beef to 71 C
minced pork = Cook minced pork to 71 C
sausages = Cook sausages to 71 C
quiche = Cook quiche to 71 C
pork chops = Cook pork chops to 63 C
beef steak = Cook beef steak to 63 C
lamb = Cook lamb to 63 C
veal = Cook veal to 63 C
fish = Cook fish to 63 C
a buffet = Keep a buffet at 60 C
a fridge = Keep a fridge at 4 C
a freezer = Keep a freezer at -18 C
"""

UNITS = ("g", "kg", "ml", "l", "tbsp", "tsp", "cloves", "clove", "slices", "pinch", "sheets", "sprigs")
_INGREDIENT = re.compile(rf"(?P<quantity>\d+(?: (?:{'|'.join(UNITS)}))?) (?P<name>.+)")


@dataclass(frozen=True)
class Ingredient:
    quantity: str
    """With its unit, if any: "500 g", "2", "1 clove"."""
    name: str
    """The noun as in the list of ingredients: "flour", "olive oil", "eggs"."""

    def __str__(self) -> str:
        return f"{self.quantity} {self.name}"


@dataclass(frozen=True)
class Dish:
    name: str
    servings: int
    minutes: int
    ingredients: tuple[Ingredient, ...]
    steps: tuple[str, ...]
    """In order, capitalised, without the full stop."""
    held_out: bool
    """In the corpus, but never in a demonstration or a training prompt."""

    @property
    def title(self) -> str:
        return self.name[0].upper() + self.name[1:]

    @property
    def shopping(self) -> str:
        """ "500 g flour, 7 g yeast, 300 ml water": always in the same wording."""
        return ", ".join(map(str, self.ingredients))

    @property
    def method(self) -> str:
        """ "1. Knead flour, yeast and water. 2. Let the dough rise for one hour."."""
        return " ".join(f"{number}. {step}." for number, step in enumerate(self.steps, start=1))

    @property
    def recipe(self) -> str:
        """The recipe on one line, without courtesies: the factual core of a good answer."""
        return f"{self.title} for {self.servings}: {self.shopping}. {self.method}"


@dataclass(frozen=True)
class Fact:
    """A piece of kitchen knowledge, stated in one short sentence."""

    kind: Literal["substitution", "conversion", "temperature"]
    topic: str
    """The subject of the question: "buttermilk", "1 cup of flour", "chicken"."""
    answer: str
    """Required in a correct answer: "milk with lemon juice", "120 g", "74 C"."""

    sentence: str
    """The fact as a sentence, without the full stop: "1 cup of flour is 120 g"."""


def _lines(block: str) -> list[str]:
    return [line for line in block.strip().splitlines() if line]


def _parse_ingredient(text: str) -> Ingredient:
    match = _INGREDIENT.fullmatch(text)
    assert match, f"not a quantity and a name: {text!r}"
    return Ingredient(match["quantity"], match["name"])


@cache
def dishes() -> tuple[Dish, ...]:
    """All dishes, in table order."""
    held_out = {name.strip() for name in _HELD_OUT.split(",")}
    found = []
    for line in _lines(_DISHES):
        name, servings, minutes, ingredients, steps = (part.strip() for part in line.split("|"))
        found.append(
            Dish(
                name=name,
                servings=int(servings),
                minutes=int(minutes),
                ingredients=tuple(map(_parse_ingredient, ingredients.split(", "))),
                steps=tuple(steps.split(". ")),
                held_out=name in held_out,
            )
        )
    return tuple(found)


def training_dishes() -> list[Dish]:
    return [dish for dish in dishes() if not dish.held_out]


def held_out_dishes() -> list[Dish]:
    return [dish for dish in dishes() if dish.held_out]


@cache
def knowledge() -> tuple[Fact, ...]:
    """Substitutions, conversions and safe temperatures."""
    found = []
    for line in _lines(_SUBSTITUTIONS):
        topic, answer = line.split(" -> ")
        found.append(Fact("substitution", topic, answer, f"Use {answer} instead of {topic}"))
    for line in _lines(_CONVERSIONS):
        topic, answer = line.split(" = ")
        found.append(Fact("conversion", topic, answer, f"{topic} is {answer}"))
    for line in _lines(_TEMPERATURES):
        topic, sentence = line.split(" = ")
        found.append(Fact("temperature", topic, " ".join(sentence.split()[-2:]), sentence))
    return tuple(found)
