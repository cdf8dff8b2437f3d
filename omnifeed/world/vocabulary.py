"""The words of the market: categories, titles in three languages, and what people type.

Queries are made from the words of titles, so lexical search works; a misspelt or half-typed word still means the word
it came from, to the simulated user as to a person.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LANGUAGES = ("en", "de", "zh")
MAX_WORDS = 4  # known words of a query that count

# category | median price, USD | nouns in English | German | Chinese; every noun belongs to one category
_LEAVES = """
beauty/skincare|18|serum moisturizer cleanser toner sunscreen|Hautserum Feuchtigkeitscreme Reiniger Sonnencreme|精华液 面霜 洁面乳 防晒霜
beauty/makeup|15|lipstick mascara foundation eyeshadow blush|Lippenstift Wimperntusche Grundierung Lidschatten|口红 睫毛膏 粉底液 眼影
beauty/haircare|14|shampoo conditioner hairdryer straightener|Haarshampoo Spülung Haartrockner Glätteisen|洗发水 护发素 吹风机 直发器
fashion/women|32|dress blouse skirt cardigan handbag|Kleid Bluse Damenrock Strickjacke Handtasche|连衣裙 衬衫 半身裙 手提包
fashion/men|36|hoodie chinos overshirt polo belt|Kapuzenpullover Herrenhose Poloshirt Gürtel|卫衣 休闲裤 男士衬衣 皮带
fashion/shoes|48|sneakers boots loafers sandals heels|Turnschuhe Stiefel Halbschuhe Sandalen|运动鞋 靴子 乐福鞋 凉鞋
electronics/audio|55|headphones earbuds speaker soundbar|Kopfhörer Ohrstöpsel Lautsprecher Klangleiste|耳机 耳塞 音箱 回音壁
electronics/phones|120|smartphone charger powerbank phonecase|Telefon Ladegerät Powerbank Handyhülle|智能手机 充电器 充电宝 手机壳
electronics/cameras|140|camera lens tripod drone gimbal|Kamera Objektiv Stativ Drohne|相机 镜头 三脚架 无人机
home/kitchen|34|pan kettle blender knife airfryer|Pfanne Wasserkocher Mixer Küchenmesser|平底锅 电热水壶 搅拌机 空气炸锅
home/furniture|110|sofa bookshelf desk armchair lamp|Sofa Bücherregal Schreibtisch Sessel|沙发 书架 书桌 台灯
home/bedding|42|duvet pillow mattress blanket sheets|Bettdecke Kopfkissen Matratze Wolldecke|羽绒被 枕头 床垫 毛毯
sports/fitness|38|dumbbell treadmill yogamat kettlebell|Hantel Laufband Yogamatte Kugelhantel|哑铃 跑步机 瑜伽垫 壶铃
sports/outdoor|62|tent backpack hikingpoles sleepingbag|Zelt Wanderrucksack Wanderstöcke Schlafsack|帐篷 登山包 登山杖 睡袋
sports/cycling|85|bicycle helmet bikelight saddle|Fahrrad Fahrradhelm Fahrradlicht Sattel|自行车 头盔 车灯 坐垫
food/snacks|9|chocolate cookies crisps nuts pretzels|Schokolade Kekse Kartoffelchips Nüsse|巧克力 饼干 薯片 坚果
food/tea|16|greentea oolong matcha teapot|Grüntee Oolongtee Matchapulver Teekanne|绿茶 乌龙茶 抹茶 茶壶
food/fresh|22|mango salmon steak cherries|Mangos Lachs Rindersteak Kirschen|芒果 三文鱼 牛排 樱桃
baby/toys|20|buildingblocks puzzle dollhouse plush|Bauklötze Puzzlespiel Puppenhaus Kuscheltier|积木 拼图 娃娃屋 毛绒玩具
baby/care|24|diapers stroller babybottle pacifier|Windeln Kinderwagen Babyflasche Schnuller|纸尿裤 婴儿车 奶瓶 安抚奶嘴
baby/clothing|19|romper bodysuit babysocks bib|Strampler Babybody Babysocken Lätzchen|连体衣 包屁衣 婴儿袜 围嘴
pets/dogs|23|dogfood leash dogbed chewtoy|Hundefutter Hundeleine Hundebett Kauspielzeug|狗粮 牵引绳 狗窝 磨牙棒
pets/cats|21|catlitter catfood scratchingpost catnip|Katzenstreu Katzenfutter Kratzbaum Katzenminze|猫砂 猫粮 猫抓板 猫薄荷
pets/aquarium|44|aquarium filterpump fishfood coral|Aquarium Filterpumpe Fischfutter Koralle|鱼缸 过滤泵 鱼食 珊瑚
jewelry/rings|95|ring engagementring signet band|Fingerring Verlobungsring Siegelring Ehering|戒指 订婚戒指 图章戒指 对戒
jewelry/watches|130|wristwatch chronograph watchstrap smartwatch|Armbanduhr Chronograph Uhrenarmband Smartuhr|手表 计时码表 表带 智能手表
jewelry/jade|88|jade bracelet pendant amber|Jadestein Armreif Anhänger Bernstein|玉石 手镯 吊坠 琥珀
books/novels|13|novel thriller romance fantasy|Roman Krimi Liebesroman Fantasybuch|小说 悬疑 言情 奇幻
books/learning|18|textbook dictionary workbook flashcards|Lehrbuch Wörterbuch Arbeitsheft Lernkarten|教材 词典 练习册 单词卡
books/stationery|11|notebook fountainpen planner stickers|Notizbuch Füller Terminplaner Aufkleber|笔记本 钢笔 日程本 贴纸
"""  # noqa: E501


def _list(words: str) -> tuple[str, ...]:
    return tuple(words.split())


_ADJECTIVES = {
    "en": _list("light classic soft premium compact daily vintage bold natural travel organic slim"),
    "de": _list("leicht klassisch weich hochwertig kompakt täglich kräftig natürlich schlank günstig"),
    "zh": _list("轻便 经典 柔软 高端 便携 日常 复古 天然 修身 新款"),
}
_BRANDS = _list(
    "Aurelo Bramix Cindora Delvano Elquist Fennora Galdine Hovenko Irvelle Jontari Kelmora Lunivo Mirantel Nordeva "
    "Oskari Pellucid Quendra Rivello Sundral Tavolix Umbrano Velstra Wexford Xandova Yorvik Zelphine"
)
_SENTENCES = {
    "en": "{words}. Chosen by {brand}, shown and explained.",
    "de": "{words}. Von {brand} ausgewählt, gezeigt und erklärt.",
    "zh": "{words}。{brand} 精选，现场讲解。",
}


@dataclass(frozen=True, slots=True)
class Query:
    """What a typed query means: the category asked for (-1: none) and its known words."""

    leaf: int
    words: tuple[int, ...]


class Vocabulary:
    """Categories and words, with the meaning of every query that the world can type."""

    def __init__(self) -> None:
        rows = [line.split("|") for line in _LEAVES.strip().splitlines()]
        self.categories = tuple(row[0] for row in rows)
        tops = sorted({path.split("/")[0] for path in self.categories})
        self.tops = tuple(tops)
        self.top_of_leaf = np.array([tops.index(path.split("/")[0]) for path in self.categories], np.int64)
        self.median_price = np.array([float(row[1]) for row in rows])
        self.words: list[str] = []
        self._exact: dict[str, int] = {}
        self.nouns = tuple(
            tuple(tuple(self._add(word) for word in row[2 + language].split()) for language in range(len(LANGUAGES)))
            for row in rows
        )  # [leaf][language] -> word ids
        self.adjectives = tuple(tuple(self._add(word) for word in _ADJECTIVES[name]) for name in LANGUAGES)
        self.brands = tuple(self._add(word) for word in _BRANDS)
        self.leaf_of_word = np.full(len(self.words), -1, np.int64)
        for leaf, by_language in enumerate(self.nouns):
            for ids in by_language:
                self.leaf_of_word[list(ids)] = leaf
        self._known = self._spellings()
        self._meanings: dict[str, Query] = {}

    def _add(self, word: str) -> int:
        """The word's number; what two languages spell alike is one word."""
        if word.casefold() not in self._exact:
            self._exact[word.casefold()] = len(self.words)
            self.words.append(word)
        return self._exact[word.casefold()]

    def _spellings(self) -> dict[str, int]:
        known = dict(self._exact)
        for word, index in self._exact.items():
            for variant in (
                *(partial(word, n) for n in range(2, len(word))),
                *(misspelt(word, n) for n in range(len(word))),
            ):
                known.setdefault(variant, index)
        return known

    def meaning(self, query: str | None) -> Query:
        """What the query asks for; words that nobody knows are ignored."""
        if not query:
            return Query(-1, ())
        found = self._meanings.get(query)
        if found is None:
            ids = tuple(self._known[w] for w in query[:256].casefold().split() if w in self._known)[:MAX_WORDS]
            leaves = [int(self.leaf_of_word[word]) for word in ids if self.leaf_of_word[word] >= 0]
            found = Query(leaves[0] if leaves else -1, ids)
            if len(self._meanings) < 100_000:
                self._meanings[query] = found
        return found

    def typed(self, leaf: int, language: int, luck: tuple[float, ...]) -> str:
        """A query for this category.

        Args:
            luck: five numbers in [0, 1): noun, second word or not, which, how it is spelt, where the slip is.
        """
        nouns = self.nouns[leaf][language]
        first = int(luck[0] * len(nouns))
        words = [self.words[nouns[first]]]
        if luck[1] < 0.2:
            words.append(self.words[nouns[(first + 1 + int(luck[2] * (len(nouns) - 1))) % len(nouns)]])
        elif luck[1] < 0.4:
            words.insert(0, self.words[self.adjectives[language][int(luck[2] * len(self.adjectives[language]))]])
        elif luck[1] < 0.5:
            words.insert(0, self.words[self.brands[int(luck[2] * len(self.brands))]])
        noun = self.words[nouns[first]].casefold()
        slip = noun
        if luck[3] < 0.08:
            slip = misspelt(noun, int(luck[4] * len(noun)))
        elif luck[3] < 0.16 and len(noun) > 2:
            slip = partial(noun, max(2, int(len(noun) * (0.5 + 0.4 * luck[4]))))
        if slip != noun and self._known.get(slip) == nouns[first]:
            words = [slip if word.casefold() == noun else word for word in words]
        return " ".join(words).casefold()

    def title(self, ids: tuple[int, ...], suffix: str) -> str:
        """The words of a title in order."""
        return " ".join([*(self.words[index] for index in ids), suffix]).strip()

    def description(self, ids: tuple[int, ...], language: int) -> str:
        """One sentence in the title's language; the last word is the brand."""
        return _SENTENCES[LANGUAGES[language]].format(
            words=" ".join(self.words[index] for index in ids[:-1]), brand=self.words[ids[-1]]
        )


def partial(word: str, length: int) -> str:
    """The first characters of a word still being typed."""
    return word[:length]


def misspelt(word: str, place: int) -> str:
    """Two neighbours swapped, or in a word of two characters the word itself."""
    if len(word) < 3:
        return word
    place = min(place, len(word) - 2)
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
